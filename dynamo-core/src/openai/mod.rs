//! An engine over any OpenAI-compatible server: vLLM, SGLang, TensorRT-LLM's, llama.cpp's.
//!
//! [`OpenAiEngine`] is an [`Engine`](crate::Engine) like any other: it is served, canaried, routed
//! to and migrated from. Prompt and answer are token ids, so the hashes of a request's blocks are
//! those of what the server caches; what a server has to offer for that is a [`TokenSource`].
//! What is asked, what is read, and which server needs which setting: `docs/openai-engine.md`.

mod config;
mod engine;
mod error;
mod health;
mod http;
mod tokens;

pub use config::OpenAiConfig;
pub use engine::OpenAiEngine;
pub use health::Served;
pub use tokens::{Encode, TokenSource};
