//! When all workers are busy: who waits, who goes next, who is told to come back.
//!
//! ```text
//! request ─► a worker it may go to is not busy ─► routed at once
//!          └ all are ─► RequestQueue ─┬► one is no longer busy: routed by whoever released it
//!                                     ├► deadline or patience is over, or an end is asked for:
//!                                     │  leaves at once
//!                                     └► full: Overloaded, and when to come back
//! ```
//!
//! Three pure parts: [`RequestQueue`] (order, limits, expiry), [`BusyWorkers`] (thresholds with
//! hysteresis) and the rate at which the queue empties. [`QueuedRouter`] puts them before a
//! [`KvRouter`](crate::KvRouter) and has no task of its own; [`QueuedPool`] is the engine over it.

mod busy;
mod candidates;
mod config;
mod dispatch;
mod drain_rate;
mod fair;
mod order;
mod owned;
mod pool;
mod requests;
mod routed;
mod waiting;

pub use busy::{BusyThresholds, BusyWorkers, Pressure, Watermarks};
pub use config::{QueueConfig, QueuePolicy};
pub use pool::{Begun, QueuedPool};
pub use requests::{Demand, Entered, EntryId, Leave, QueueStats, RequestQueue};
pub use routed::QueuedRouter;
