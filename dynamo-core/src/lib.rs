//! Components, endpoints, discovery and request planes for distributed LLM inference graphs.
//!
//! Everything that answers a request is an [`Engine`]; a graph is engines wired to endpoints.
//! A whole graph in one process, with no server:
//!
//! ```
//! use dynamo_core::{Context, Engine, ResponseStream, Result, Runtime, engine_fn};
//!
//! # #[tokio::main(flavor = "current_thread")]
//! # async fn main() -> Result<()> {
//! let runtime = Runtime::in_process();
//! let endpoint = runtime.namespace("demo")?.component("greeter")?.endpoint("greet")?;
//! let _serving = endpoint
//!     .serve(engine_fn(|ctx: Context, name: String| async move {
//!         Ok(ResponseStream::from_items(&ctx, ["hello ".to_owned(), name]))
//!     }))
//!     .await?;
//!
//! let client = endpoint.client().await?;
//! let words = client.generate(Context::new(), "graph".to_owned()).await?.collect().await?;
//! assert_eq!(words.concat(), "hello graph");
//! # Ok(())
//! # }
//! ```
//!
//! # The rooms, in the order a request passes them
//! | room | what happens there |
//! |---|---|
//! | [`component`] | the nouns: namespace, component, endpoint |
//! | [`client`] | which instance: [`Picker`], [`Client`] |
//! | [`request_plane`] | one request out, one stream back |
//! | [`server`] | admission, accounting, panics, drain: [`Serving`] |
//! | [`engine`] | the user's code: [`Engine`], [`Context`], [`ResponseStream`] |
//!
//! Beside the way of a request: [`discovery`] (who is there), [`event_plane`] (one publisher, many
//! listeners), [`protocol`] (the words that crates share), [`runtime`] (the ground) and [`config`]
//! (the ground as data), [`readiness`] and the page `status` (feature `status-page`), engines behind
//! OpenAI-compatible servers (`openai`, a feature), and the floor under all: [`error`],
//! [`metrics`], [`name`], [`time`].
//!
//! # Promises
//! - Every stream ends in exactly one of: complete, a typed error, cancelled. A deadline or a kill
//!   ends it even if the engine hangs, and ends the work behind it even if nobody reads the stream.
//! - A request reaches at most one instance, at most once; a retryable error means nothing started.
//! - A guard put into a stream lives exactly as long as the stream.
//! - No ambient state: no statics, no detached tasks, no subscriber installed, and no environment
//!   unless it is asked for by name ([`RuntimeConfig::from_env`]).
#![forbid(unsafe_code)]

pub mod client;
pub mod component;
pub mod config;
pub mod discovery;
pub mod engine;
pub mod error;
pub mod event_plane;
pub mod metrics;
pub mod name;
#[cfg(feature = "nats")]
pub mod nats;
#[cfg(feature = "openai")]
pub mod openai;
pub mod protocol;
pub mod random;
pub mod readiness;
pub mod request_plane;
pub mod runtime;
pub mod server;
#[cfg(feature = "status-page")]
pub mod status;
#[cfg(all(feature = "openai", any(test, feature = "test-util")))]
pub mod testing;
pub mod time;
pub mod wire;

pub use client::{Client, LeastLoaded, Pick, Picker, PowerOfTwo, RandomPicker, RoundRobin};
pub use component::{Component, Endpoint, Namespace};
pub use config::RuntimeConfig;
pub use discovery::Instance;
pub use engine::{
    Context, DynEngine, Engine, Priority, RequestId, ResponseSender, ResponseStream, SharedEngine,
    engine_fn,
};
pub use error::{Error, ErrorKind, Result};
pub use request_plane::Message;
pub use runtime::Runtime;
pub use server::{Canary, DrainReport, ServeOptions, Serving};
