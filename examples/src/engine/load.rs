use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use dynamo_core::protocol::LoadReport;

use super::LlamaWorker;

/// What requests that are not computed to their end add up to.
#[derive(Debug, Default)]
pub(super) struct Busy {
    requests: AtomicU64,
    prefill_tokens: AtomicU64,
}

/// One request's part of it, until it is dropped.
pub(super) struct Share {
    busy: Arc<Busy>,
    prefill_tokens: u64,
}

impl Busy {
    /// Counts a request that has `prefill_tokens` to prefill, as far as is known.
    pub(super) fn begin(self: &Arc<Self>, prefill_tokens: usize) -> Share {
        self.requests.fetch_add(1, Ordering::Relaxed);
        let mut share = Share { busy: Arc::clone(self), prefill_tokens: 0 };
        share.set_prefill(prefill_tokens);
        share
    }
}

impl Share {
    pub(super) fn set_prefill(&mut self, tokens: usize) {
        let tokens = tokens as u64;
        let before = std::mem::replace(&mut self.prefill_tokens, tokens);
        self.busy.prefill_tokens.fetch_add(tokens.wrapping_sub(before), Ordering::Relaxed);
    }
}

impl Drop for Share {
    fn drop(&mut self) {
        self.set_prefill(0);
        self.busy.requests.fetch_sub(1, Ordering::Relaxed);
    }
}

impl LlamaWorker {
    /// Returns how busy it is. Of a prompt that waits, all counts as to be prefilled: what is cached
    /// of it shows when its turn comes. Requests whose blocks wait to be pulled are not counted.
    pub fn load(&self) -> LoadReport {
        let (pool, busy) = (self.0.manager.stats(), &self.0.busy);
        let running = self.0.options.sequences_max - self.0.compute.available_permits();
        let requests = busy.requests.load(Ordering::Relaxed);
        let count = |count: u64| u32::try_from(count).unwrap_or(u32::MAX);
        LoadReport {
            worker: self.0.manager.worker(),
            requests_running: count(running as u64),
            requests_waiting: count(requests.saturating_sub(running as u64)),
            prefill_tokens: Some(busy.prefill_tokens.load(Ordering::Relaxed)),
            blocks_active: (pool.mutable + pool.complete + pool.active) as u64,
            blocks_total: pool.capacity as u64,
        }
    }
}
