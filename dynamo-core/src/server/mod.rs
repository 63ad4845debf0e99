//! The serving side of an endpoint: admission, accounting, panics, drain.

mod canary;
mod dispatch;
mod inflight;
mod listing;
mod serving;
mod totals;

pub use canary::Canary;
pub use serving::{DrainReport, ServeOptions, Serving};

pub(crate) use serving::serve;
