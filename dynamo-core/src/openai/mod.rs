//! An engine over any OpenAI-compatible server: vLLM, SGLang, TensorRT-LLM's, llama.cpp's.
//!
//! [`OpenAiEngine`] is an [`Engine`](crate::Engine) like any other: it is served, canaried, routed
//! to and migrated from. Prompt and answer are token ids, so the hashes of a request's blocks are
//! those of what the server caches; what a server has to offer for that is a [`TokenSource`].
//! What is asked, what is read, and which server needs which setting: `docs/openai-engine.md`.

mod answer;
mod config;
mod engine;
mod error;
mod health;
mod http;
mod live;
mod request;
mod sse;
mod tokens;

pub use config::OpenAiConfig;
pub use engine::OpenAiEngine;
pub use health::Served;
#[cfg(any(test, feature = "test-util"))]
pub use sse::fuzz_sse;
pub use tokens::{Encode, TokenSource};
