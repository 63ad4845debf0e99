//! Filter → score → pick: the one formula, and why.

mod affinity;
mod columns;
mod cost;
mod explain;
mod pick;

pub use affinity::{AffinityConfig, SESSION_METADATA, SessionAffinity, SessionKey, Stickiness};
pub use cost::{CandidateCost, CostModel};
pub use explain::{Rivals, RouteExplain};

pub(crate) use columns::{Asked, Columns, View};
pub(crate) use cost::Work;
pub(crate) use pick::pick;
