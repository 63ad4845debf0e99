use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::time::{Duration, Instant};

use dynamo_core::protocol::WorkerId;
use dynamo_core::time::Clock;

use super::listeners::{Change, Listeners, ReleaseListener};
use super::{Slot, Slots};
use crate::load::{Pace, Row};
use crate::router::{Expected, RouterConfig};

/// A worker's place in a router: its slot, what is booked on it, and how fast it is.
///
/// Whoever needs the slot to stay this worker's holds the seat: the fleet, the index's feed, a
/// booking. When the last of them has let go the slot is another worker's.
#[derive(Debug)]
pub(crate) struct Seat {
    pub(crate) load: Row,
    worker: WorkerId,
    slot: Slot,
    common: Arc<Common>,
}

impl Seat {
    /// Gives `worker` a seat; `None` if there are no more.
    pub(super) fn take(worker: WorkerId, common: &Arc<Common>) -> Option<Arc<Self>> {
        let (slot, load) = common.slots.take()?;
        let common = Arc::clone(common);
        Some(Arc::new(Self { load, worker, slot, common }))
    }

    pub(crate) fn worker(&self) -> WorkerId {
        self.worker
    }

    pub(crate) fn slot(&self) -> Slot {
        self.slot
    }

    pub(crate) fn common(&self) -> &Common {
        &self.common
    }
}

impl Drop for Seat {
    fn drop(&mut self) {
        self.common.expected.forget(self.slot, self.common.clock.now());
        self.common.slots.give_back(self.slot);
    }
}

/// What all seats of a router share.
pub(crate) struct Common {
    pub(crate) clock: Arc<dyn Clock>,
    /// How fast all of them are together.
    pub(crate) pace: Pace,
    /// How long a booking stays without progress.
    pub(crate) lease: Duration,
    pub(crate) leases_expired_total: AtomicU64,
    /// What was sent where.
    pub(crate) expected: Expected,
    started: Instant,
    slots: Slots,
    listeners: Arc<Listeners>,
}

impl Common {
    pub(crate) fn new(clock: Arc<dyn Clock>, config: &RouterConfig) -> Arc<Self> {
        let started = clock.now();
        Arc::new(Self {
            started,
            clock,
            pace: Pace::new(config.cost.step_s_per_token, config.cost.output_tokens),
            lease: config.lease,
            expected: Expected::new(config, started),
            leases_expired_total: AtomicU64::new(0),
            slots: Slots::default(),
            listeners: Arc::default(),
        })
    }

    /// Returns the time as the tables have it: nanoseconds since the router was made.
    pub(crate) fn now_ns(&self) -> u64 {
        self.ns(self.clock.now())
    }

    /// Returns the moment that [`now_ns`](Self::now_ns) says.
    pub(crate) fn at(&self, ns: u64) -> Instant {
        self.started + Duration::from_nanos(ns)
    }

    pub(crate) fn ns(&self, at: Instant) -> u64 {
        as_ns(at.saturating_duration_since(self.started))
    }

    /// Has `listener` told of changes for as long as what this returns is kept.
    pub(crate) fn on_change(
        &self,
        listener: impl Fn(WorkerId, Change) + Send + Sync + 'static,
    ) -> ReleaseListener {
        self.listeners.add(Arc::new(listener))
    }

    /// Says that a worker may have room that it had not.
    pub(crate) fn released(&self, worker: WorkerId) {
        self.listeners.tell(worker, Change::Less);
    }

    /// Says that more is booked on a worker.
    pub(crate) fn booked(&self, worker: WorkerId) {
        self.listeners.tell(worker, Change::More);
    }
}

pub(crate) fn as_ns(duration: Duration) -> u64 {
    u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX)
}

impl std::fmt::Debug for Common {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Common").field("lease", &self.lease).finish_non_exhaustive()
    }
}
