//! Engines around engines: each takes one concern off the engine inside.
//!
//! Layers compose by wrapping: `Retry::new(Timeout::new(engine, …), …)`. What a layer holds for a
//! request it holds until the *stream* ends.

mod retry;

pub use retry::{Attempts, Retries, Retry, RetryPolicy};
