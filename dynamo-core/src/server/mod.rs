//! The serving side of an endpoint: admission, accounting, panics, drain.

mod dispatch;
mod inflight;
mod serving;

pub use serving::{DrainReport, ServeOptions, Serving};

pub(crate) use serving::serve;
