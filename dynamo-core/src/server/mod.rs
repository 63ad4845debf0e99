//! The serving side of an endpoint: admission, accounting, panics, drain, and how busy it says it is.

mod canary;
mod dispatch;
mod inflight;
mod listing;
mod load;
mod serving;
mod totals;

pub use canary::Canary;
pub use load::{LoadPublisher, LoadPublisherConfig};
pub use serving::{DrainReport, ServeOptions, Serving};

pub(crate) use serving::serve;
