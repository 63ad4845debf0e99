//! What feeds the index: the events of each worker in order, and a snapshot where some were lost.
//!
//! ```text
//! event plane ─► EventFeed ─► Intake ─► Sequencer ─► index        in order: applied
//!                    ▲           │          │
//!                    │           │          └ gap: held, and the old coverage serves on
//!                    └─ asks ◄── Check ◄────┘
//!        snapshot ───────────► Intake ─► splice ─► index          replaced, then what was held
//! ```
//!
//! Without snapshots, or where a worker does not answer, what is known of it is dropped at a gap.
//! A wrong index costs latency only; [`diagnosis`] says when it is wrong for good.

mod check;
mod config;
pub mod diagnosis;
mod feed;
mod intake;
pub mod metrics;
mod observe;
mod sequencer;
mod snapshot;
mod stats;
mod table;
#[cfg(feature = "vllm")]
pub mod vllm;

pub use config::ResyncConfig;
pub use diagnosis::{Diagnosis, DiagnosisChange, DiagnosisObserver};
pub use feed::EventFeed;
pub(crate) use intake::Intake;
pub use metrics::EventMetrics;
pub(crate) use sequencer::Reached;
pub use stats::EventStats;
