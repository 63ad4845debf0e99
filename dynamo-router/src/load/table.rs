use super::Load;
use super::counts::Counts;
use super::report::Reported;
use super::row::{Booked, clamp};
use super::speed::{Speed, fade, halves};
use super::sync::{AtomicU64, Ordering};

/// The words of [`ROWS`] workers that every choice reads, those of one kind side by side; never
/// moved. What is rarely said comes behind them.
#[derive(Debug)]
#[repr(C, align(64))]
pub(crate) struct Chunk {
    pub(super) booked: [AtomicU64; ROWS],
    pub(super) blocks: [AtomicU64; ROWS],
    pub(super) speeds: [Speed; ROWS],
    /// One bit for each of whom more is known than what this router has booked.
    corrected: AtomicU64,
    pub(super) others: [Counts; ROWS],
    pub(super) reported: [Reported; ROWS],
}

/// Workers of a chunk, as many as a word has bits.
pub(crate) const ROWS: usize = 64;

/// What was seen of the workers of a chunk at a moment, for arithmetic on many at once: each array
/// is by row.
#[derive(Debug)]
pub(crate) struct Seen {
    pub(crate) booked: [Booked; ROWS],
    /// The other words, as they are.
    blocks_booked: [u64; ROWS],
    took: [u64; ROWS],
    since_ns: [u64; ROWS],
    /// Of the load, corrected as in [`Load`].
    pub(crate) requests: [f32; ROWS],
    pub(crate) decoding: [f32; ROWS],
    pub(crate) prefill_tokens: [f32; ROWS],
    pub(crate) blocks: [f32; ROWS],
    /// What a worker has shown of its speed, as far as it still counts: tokens, and the seconds that they
    /// took.
    pub(crate) took_tokens: [f32; ROWS],
    pub(crate) took_s: [f32; ROWS],
    /// How long it has been at the request at the head of its queue, in seconds; 0 if none of this
    /// router's waits there.
    pub(crate) busy_s: [f32; ROWS],
}

impl Default for Chunk {
    fn default() -> Self {
        Self {
            booked: std::array::from_fn(|_| AtomicU64::new(0)),
            blocks: std::array::from_fn(|_| AtomicU64::new(0)),
            speeds: std::array::from_fn(|_| Speed::default()),
            corrected: AtomicU64::new(0),
            others: std::array::from_fn(|_| Counts::default()),
            reported: std::array::from_fn(|_| Reported::default()),
        }
    }
}

impl Default for Seen {
    fn default() -> Self {
        let none = [0.0; ROWS];
        Self {
            booked: [Booked::NOTHING; ROWS],
            blocks_booked: [0; ROWS],
            took: [0; ROWS],
            since_ns: [0; ROWS],
            requests: none,
            decoding: none,
            prefill_tokens: none,
            blocks: none,
            took_tokens: none,
            took_s: none,
            busy_s: none,
        }
    }
}

impl Chunk {
    /// Looks at the first `count` rows at `now`.
    #[inline(always)]
    pub(crate) fn see(&self, count: usize, now: u64, report_max_ns: u64, seen: &mut Seen) {
        // Atomics are read one by one, and made numbers of many at once.
        for at in 0..count.min(ROWS) {
            seen.booked[at] = self.booked(at);
            seen.blocks_booked[at] = self.blocks(at);
            seen.took[at] = self.speeds[at].took();
            seen.since_ns[at] = self.speeds[at].since_ns(now);
        }
        seen.convert(count);
        let mut corrected = self.corrected.load(Ordering::Relaxed);
        while corrected != 0 {
            let at = corrected.trailing_zeros() as usize;
            corrected &= corrected - 1;
            seen.set_load(at, &self.load(at, seen.booked[at], now, report_max_ns));
        }
    }

    pub(super) fn booked(&self, at: usize) -> Booked {
        Booked::of(self.booked[at].load(Ordering::Acquire))
    }

    pub(super) fn blocks(&self, at: usize) -> u64 {
        self.blocks[at].load(Ordering::Relaxed)
    }

    /// Returns a row's load, of which `booked` is the word seen, at `now`.
    pub(super) fn load(&self, at: usize, booked: Booked, now: u64, report_max_ns: u64) -> Load {
        let booked = self.own(at, booked).plus(self.others[at].load());
        self.reported[at].correct(booked, now, report_max_ns)
    }

    /// Returns what this router has booked on a row.
    pub(super) fn own(&self, at: usize, booked: Booked) -> Load {
        Load {
            requests: clamp(booked.requests()),
            decoding: clamp(booked.decoding()),
            prefill_tokens: clamp(booked.prefill_tokens()),
            blocks: clamp(self.blocks(at)),
            blocks_total: 0,
        }
    }

    /// Forgets all that is known of a row, on which nothing is booked.
    pub(super) fn forget(&self, at: usize) {
        self.set_corrected(at, false);
        self.speeds[at].forget();
        self.others[at].set(Load::default());
        self.reported[at].forget();
    }

    /// Says that more is known of a row than what this router has booked, or nothing any more.
    pub(super) fn set_corrected(&self, at: usize, is_corrected: bool) {
        match is_corrected {
            true => self.corrected.fetch_or(1 << at, Ordering::Release),
            false => self.corrected.fetch_and(!(1 << at), Ordering::Release),
        };
    }
}

impl Seen {
    /// Makes numbers of the first `count` rows' words.
    #[inline(always)]
    fn convert(&mut self, count: usize) {
        for at in 0..count.min(ROWS) {
            let booked = self.booked[at];
            self.prefill_tokens[at] = single(booked.prefill_tokens());
            self.requests[at] = single(booked.requests());
            self.decoding[at] = single(booked.decoding());
            self.blocks[at] = single(self.blocks_booked[at]);
            // Of others' prompts it is not known since when they are at the head.
            let has_head = booked.waiting() > 0;
            let since_s = single(self.since_ns[at]) * 1e-9;
            self.busy_s[at] = if has_head { since_s } else { 0.0 };
            let kept = fade(if has_head { 0.0 } else { since_s });
            let (tokens, seconds) = halves(self.took[at]);
            (self.took_tokens[at], self.took_s[at]) = (tokens * kept, seconds * kept);
        }
    }

    /// Takes in what is seen of one row's load.
    pub(crate) fn set_load(&mut self, at: usize, load: &Load) {
        self.requests[at] = load.requests as f32;
        self.decoding[at] = load.decoding as f32;
        self.prefill_tokens[at] = load.prefill_tokens as f32;
        self.blocks[at] = load.blocks as f32;
    }
}

/// Seven digits of a count, which there are fewer of than 2^63.
#[inline(always)]
fn single(count: u64) -> f32 {
    count.cast_signed() as f32
}
