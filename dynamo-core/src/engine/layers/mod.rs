//! Engines around engines: each takes one concern off the engine inside.
//!
//! Layers compose by wrapping: `Retry::new(Timeout::new(engine, …), …)`. What a layer holds for a
//! request it holds until the *stream* ends.
//!
//! | layer | promises |
//! |---|---|
//! | [`Timeout`] | an answer that takes too long, as a whole or for an item, ends with `DeadlineExceeded` that says [which bound](Exceeded) it was, and the work behind it is killed |
//! | [`Concurrency`] | so many streams at once, so many requests wait, by priority; the rest is refused unprocessed and told when to come back |
//! | [`Retry`] | a request that failed before its stream began is tried again, within a budget |
//! | [`Hedge`] | a late first item is asked for a second time, elsewhere; the first copy to have one answers, the other is killed |
//! | [`Migrate`] | an answer that is lost in mid-stream goes on elsewhere, each item once and in order |
//! | [`Split`] | requests are shared out by weight, a key always to the same engine |
//! | [`Mirror`] | a share of the requests is copied to a second engine; the primary never notices |
//! | [`Trace`] | a span around what a graph does, one step further in the request's trace |
//!
//! From the outside in, a usual order is: [`Mirror`], [`Timeout`], [`Concurrency`], [`Migrate`],
//! [`Hedge`], the [`Client`](crate::Client), which has retries of its own.

mod concurrency;
mod hedge;
mod migrate;
mod mirror;
mod retry;
mod split;
mod timeout;
mod trace;

pub use concurrency::Concurrency;
pub use hedge::{Hedge, HedgeDelay, HedgePolicy};
pub use migrate::{GenerateProgress, Migrate, MigratePolicy, Progress, Rest, Resumable};
pub use mirror::{Mirror, MirrorPolicy};
pub use retry::{Attempts, Retries, Retry, RetryPolicy};
pub use split::Split;
pub use timeout::{Exceeded, Timeout, TimeoutPolicy};
pub use trace::Trace;
