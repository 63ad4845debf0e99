//! Filter → score → pick: the one formula, and why.

mod cost;
mod explain;
mod pick;

pub use cost::{CandidateCost, CostModel};
pub use explain::RouteExplain;

pub(crate) use cost::{Rates, Work, cost};
pub(crate) use pick::pick;
