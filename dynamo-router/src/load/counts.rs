use std::sync::atomic::{AtomicUsize, Ordering};

use super::Load;

/// A load that is written in one place and read in others, of which no total is known.
#[derive(Debug, Default)]
#[repr(C)]
pub(super) struct Counts {
    requests: AtomicUsize,
    decoding: AtomicUsize,
    prefill_tokens: AtomicUsize,
    blocks: AtomicUsize,
}

impl Counts {
    /// Replaces it; tells whether it was something else.
    pub(super) fn set(&self, load: Load) -> bool {
        let set = |field: &AtomicUsize, count| field.swap(count, Ordering::Relaxed) != count;
        set(&self.requests, load.requests)
            | set(&self.decoding, load.decoding)
            | set(&self.prefill_tokens, load.prefill_tokens)
            | set(&self.blocks, load.blocks)
    }

    /// Returns it; two changes at once may be mixed.
    #[inline(always)]
    pub(super) fn load(&self) -> Load {
        let get = |field: &AtomicUsize| field.load(Ordering::Relaxed);
        Load {
            requests: get(&self.requests),
            decoding: get(&self.decoding),
            prefill_tokens: get(&self.prefill_tokens),
            blocks: get(&self.blocks),
            blocks_total: 0,
        }
    }
}
