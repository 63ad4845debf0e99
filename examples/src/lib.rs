//! Runnable graphs on the SDK: a CPU engine for Llama-architecture GGUF models whose KV cache is
//! `dynamo-kv`'s blocks, and an OpenAI-compatible HTTP front end.
//!
//! | module | what it shows |
//! |---|---|
//! | [`model`] | weights, forward pass, tokenizer and chat template of a GGUF file |
//! | [`client`] | a minimal HTTP client, for demos |
//! | [`disk`] | what workers keep below memory |
//! | [`engine`] | a worker: prefix reuse, prefill, decode and hand-off over block memory |
//! | [`front_end`] | one pool of workers that are found by discovery, whatever they are: routed, migrated, told of |
//! | [`graph`] | wiring workers, routers and planes into an aggregated or disaggregated graph |
//! | [`openai`] | an HTTP front end over any engine |
//! | [`planes`] | a runtime that reaches other processes, over etcd, NATS and TCP |
//! | [`process`] | what the programs of a fleet share: a log, signals |
//! | [`sidecar`] | an engine server that others wrote, as an instance of a component |
//! | [`servers`] | etcd and NATS on loopback, for graphs of several processes |
//! | [`text`] | what the front end needs of the model |
#![forbid(unsafe_code)]

pub mod client;
pub mod disk;
pub mod engine;
pub mod front_end;
pub mod graph;
pub mod model;
pub mod openai;
#[cfg(feature = "processes")]
pub mod planes;
#[cfg(feature = "processes")]
pub mod process;
pub mod servers;
pub mod sidecar;
pub mod text;
