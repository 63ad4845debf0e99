//! What a process holds.

use std::fs;
use std::time::Duration;

use dynamo_transfer::Agent;

use crate::agents::PATIENCE;

/// Open files, threads, and an agent's regions and transfers in flight.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Held {
    pub(crate) files: usize,
    pub(crate) threads: usize,
    pub(crate) regions: usize,
    pub(crate) in_flight: u64,
}

impl Held {
    pub(crate) fn now(agent: &Agent) -> Self {
        let count = |folder| fs::read_dir(folder).unwrap().count();
        let stats = agent.stats();
        Self {
            files: count("/proc/self/fd"),
            threads: count("/proc/self/task"),
            regions: stats.regions,
            in_flight: stats.in_flight(),
        }
    }

    /// Waits until no more is held than now; returns what is.
    pub(crate) async fn again(&self, agent: &Agent) -> Self {
        let is_as_before = |now: &Self| {
            now.files <= self.files + STALE_LANES_MAX
                && now.threads <= self.threads
                && (now.regions, now.in_flight) == (self.regions, self.in_flight)
        };
        let settles = async {
            while !is_as_before(&Self::now(agent)) {
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
        };
        // What is held in the end tells more than that it took too long.
        let settled = tokio::time::timeout(PATIENCE, settles).await;
        let now = Self::now(agent);
        assert!(settled.is_ok() && is_as_before(&now), "{self:?} became {now:?}");
        now
    }
}

/// Connections over TCP that were idle when their peer died are found out half a minute later, or
/// when they are used: as many as lead to one peer.
const STALE_LANES_MAX: usize = 2;
