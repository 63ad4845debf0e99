//! KV-cache-aware routing and the prefill/decode split.
//!
//! The heart is a synchronous call without a runtime: [`KvRouter::route`] takes a request and
//! what is asked of its worker, and answers with a worker, the reason, and a booking.
//!
//! ```
//! use std::collections::BTreeMap;
//! use std::sync::Arc;
//!
//! use dynamo_core::discovery::Address;
//! use dynamo_core::name::{EndpointPath, Name};
//! use dynamo_core::protocol::{BlockSize, CacheNamespace, GenerateRequest, InstanceId, Sampling};
//! use dynamo_core::time::SystemClock;
//! use dynamo_core::{Instance, Result};
//! use dynamo_router::{Constraints, KvRouter, RouterConfig};
//!
//! # fn main() -> Result<()> {
//! let name = |name| Name::new(name);
//! let endpoint = EndpointPath {
//!     namespace: name("demo")?, component: name("llm")?, endpoint: name("generate")?,
//! };
//! let worker = |id| Instance {
//!     id: InstanceId(id),
//!     incarnation: 0,
//!     endpoint: endpoint.clone(),
//!     address: Address(String::new()),
//!     labels: BTreeMap::new(),
//! };
//! let router = KvRouter::new(RouterConfig::default(), Arc::new(SystemClock));
//! let prompt: Vec<u32> = (0..64).collect();
//! let request = GenerateRequest::new(
//!     CacheNamespace::model("m"), BlockSize::DEFAULT, prompt, Sampling::default(),
//! );
//! router.set_workers(&[worker(1), worker(2)])?;
//! let first = router.route(&request, &Constraints::default())?;
//! let second = router.route(&request, &Constraints::default())?;
//! assert_ne!(first.worker, second.worker, "the first booking makes its worker the busier one");
//! # Ok(())
//! # }
//! ```
//!
//! # The rooms, in the order a choice passes them
//! | room | what is there |
//! |---|---|
//! | [`router`] | the recipe: find, filter, score, pick, reserve |
//! | [`index`] | who holds which prefix |
//! | [`events`] | what feeds the index: order, gaps, restarts |
//! | [`load`] | what is booked on whom, here and by other routers, until the stream ends; what workers report |
//! | [`choose`] | the one formula, sessions that stay, and the explanation |
//! | [`queue`] | who waits when all workers are busy |
//! | [`disagg`] | [`PrefillDecode`]: an engine over two pools |
//! | `testing` | a simulated fleet that replays traces (feature `test-util`) |
#![forbid(unsafe_code)]

pub mod choose;
pub mod disagg;
pub mod events;
#[cfg(test)]
mod fixtures;
pub mod index;
pub mod load;
pub mod queue;
pub mod router;
#[cfg(any(test, feature = "test-util"))]
pub mod testing;
mod workers;

pub use choose::{
    AffinityConfig, CandidateCost, CostModel, Rivals, RouteExplain, SessionKey, Stickiness,
};
pub use disagg::{DisaggConfig, DisaggReport, Observer, Outcome, Pool, PrefillDecode};
pub use events::{
    Diagnosis, DiagnosisChange, DiagnosisObserver, EventFeed, EventMetrics, EventStats,
    ResyncConfig,
};
pub use load::{Booking, BookingExchange, ExchangeConfig, Load, LoadFeed, LoadMetrics};
pub use queue::{QueueConfig, QueuePolicy, QueuedPool, QueuedRouter};
pub use router::{
    Constraints, Decision, KvRouter, Preference, PrefixSource, RouterConfig, RouterStats,
};
pub use workers::{RANKS_LABEL, ReleaseListener, Slot};
