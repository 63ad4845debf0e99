use std::sync::atomic::{AtomicU64, Ordering};

/// How many hand-offs of a worker ended how so far, and what is staged.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct HandoffStats {
    /// Blocks staged at this moment.
    pub staged_blocks: u64,
    /// Holds that ended because a peer had the blocks.
    pub stages_pulled_total: u64,
    /// Holds that ended because nobody came in time.
    pub stages_expired_total: u64,
    /// Holds that this worker gave up, or ended with.
    pub stages_dropped_total: u64,
    /// Pulls that were completed.
    pub pulls_completed_total: u64,
    /// Pulls that an owner refused: the blocks were another's, or held no longer.
    pub pulls_refused_total: u64,
    /// Pulls that failed otherwise.
    pub pulls_failed_total: u64,
    /// Pulls that were given up.
    pub pulls_dropped_total: u64,
    /// Bytes of the pulls that were completed.
    pub pulled_bytes_total: u64,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum StageOutcome {
    Pulled,
    Expired,
    Dropped,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum PullOutcome {
    Completed,
    Refused,
    Failed,
    Dropped,
}

#[derive(Debug, Default)]
pub(super) struct Counters {
    stages: [AtomicU64; 3],
    pulls: [AtomicU64; 4],
    bytes: AtomicU64,
}

impl Counters {
    pub(super) fn stage_ended(&self, outcome: StageOutcome) {
        self.stages[outcome as usize].fetch_add(1, Ordering::Relaxed);
    }

    pub(super) fn pull_ended(&self, outcome: PullOutcome, bytes: u64) {
        self.pulls[outcome as usize].fetch_add(1, Ordering::Relaxed);
        self.bytes.fetch_add(bytes, Ordering::Relaxed);
    }

    pub(super) fn read(&self, staged_blocks: usize) -> HandoffStats {
        let read = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        let [pulled, expired, dropped] = &self.stages;
        let [completed, refused, failed, given_up] = &self.pulls;
        HandoffStats {
            staged_blocks: staged_blocks as u64,
            stages_pulled_total: read(pulled),
            stages_expired_total: read(expired),
            stages_dropped_total: read(dropped),
            pulls_completed_total: read(completed),
            pulls_refused_total: read(refused),
            pulls_failed_total: read(failed),
            pulls_dropped_total: read(given_up),
            pulled_bytes_total: read(&self.bytes),
        }
    }
}
