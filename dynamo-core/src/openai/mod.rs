//! An engine over any OpenAI-compatible server: vLLM, SGLang, TensorRT-LLM's, llama.cpp's.
//!
//! [`OpenAiEngine`] is an [`Engine`](crate::Engine) like any other: it is served, canaried, routed
//! to and migrated from. Prompt and answer are token ids, so the hashes of a request's blocks are
//! those of what the server caches; what a server has to offer for that is a [`TokenSource`].
//! What is asked, what is read, and which server needs which setting: `docs/openai-engine.md`.
//!
//! # Examples
//! ```no_run
//! use dynamo_core::Runtime;
//! use dynamo_core::openai::{OpenAiConfig, OpenAiEngine};
//!
//! # #[tokio::main(flavor = "current_thread")]
//! # async fn main() -> dynamo_core::Result<()> {
//! let config = OpenAiConfig::new("http://127.0.0.1:8000", "my-model").with_end_tokens(vec![2]);
//! let engine = OpenAiEngine::new(config)?;
//! engine.check().await?;
//! let runtime = Runtime::in_process();
//! let endpoint = runtime.namespace("demo")?.component("vllm")?.endpoint("generate")?;
//! let serving = endpoint.serve(engine.clone()).await?;
//! # drop(serving);
//! # Ok(())
//! # }
//! ```

mod answer;
mod config;
mod engine;
mod error;
mod exposition;
#[cfg(any(test, feature = "test-util"))]
mod fuzz;
mod gauges;
mod health;
mod http;
mod live;
mod load;
mod request;
mod sse;
mod tokens;
mod transfer;

pub use config::OpenAiConfig;
pub use engine::OpenAiEngine;
#[cfg(any(test, feature = "test-util"))]
pub use fuzz::{fuzz_completion, fuzz_metrics, fuzz_sse};
pub use health::ModelCard;
pub use load::{EngineLoad, EngineLoadConfig};
pub use tokens::{Encode, TokenSource};

#[cfg(test)]
mod tests;
