//! What is wrong between a router and a worker, from what was predicted and what was found.
//!
//! A wrong index costs latency only, hence nobody notices a fleet that is routed blindly: workers
//! that publish nothing, that cut prompts into other blocks, or that hash them otherwise. They show
//! in the cached tokens that workers report, against those that the index predicted. Verdicts are
//! over windows of 32 requests that say anything; one changes when two windows in a row agree.

use std::collections::BTreeMap;
use std::collections::btree_map::Entry;
use std::fmt;
use std::sync::Arc;
use std::time::{Duration, Instant};

use dynamo_core::protocol::{InstanceId, WorkerId};

use crate::workers::Slot;

/// What is wrong with a worker's cache as the router sees it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum Diagnosis {
    /// It serves requests, and no event of its was ever heard: events are off, on another topic, or
    /// named by another worker.
    NoEvents,
    /// It finds prefixes whose lengths are of blocks of another size than those of requests.
    BlockSizeMismatch {
        /// Tokens of a block of requests.
        expected_tokens: u64,
        /// A multiple of the tokens of a block of the worker.
        found_tokens: u64,
    },
    /// It finds prefixes, and the index next to none: it hashes otherwise, or under another namespace.
    HashMismatch,
    /// It finds less than half of what is predicted, or more than twice as much.
    StaleIndex,
}

impl Diagnosis {
    /// Returns the stable name used in metrics.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::NoEvents => "no_events",
            Self::BlockSizeMismatch { .. } => "block_size_mismatch",
            Self::HashMismatch => "hash_mismatch",
            Self::StaleIndex => "stale_index",
        }
    }
}

impl fmt::Display for Diagnosis {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NoEvents => write!(f, "serves requests and has published no KV event"),
            Self::BlockSizeMismatch { expected_tokens, found_tokens } => write!(
                f,
                "caches in multiples of {found_tokens} tokens, requests have blocks of {expected_tokens}"
            ),
            Self::HashMismatch => write!(f, "finds prefixes that its KV events do not name"),
            Self::StaleIndex => write!(f, "finds other prefixes than its KV events say"),
        }
    }
}

/// What is wrong with a worker has changed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub struct DiagnosisChange {
    /// The worker.
    pub worker: WorkerId,
    /// What was wrong before.
    pub was: Option<Diagnosis>,
    /// What is wrong from now on; `None` if nothing.
    pub is: Option<Diagnosis>,
}

/// Is told when what is wrong with a worker changes.
pub trait DiagnosisObserver: Send + Sync + 'static {
    /// Called once for each change, on the thread that saw the answer; must not block.
    fn changed(&self, change: &DiagnosisChange);
}

impl<F: Fn(&DiagnosisChange) + Send + Sync + 'static> DiagnosisObserver for F {
    fn changed(&self, change: &DiagnosisChange) {
        self(change);
    }
}

/// One request, in tokens.
#[derive(Debug, Clone, Copy)]
pub(super) struct Sample {
    /// Of the prompt, that the index said the worker had cached.
    pub(super) predicted: u64,
    /// That it said it had, if it did.
    pub(super) actual: Option<u64>,
    pub(super) prompt: u64,
    /// Of a block of the request.
    pub(super) block: u64,
}

/// What is wrong with whom, and what speaks for it.
#[derive(Default)]
pub(super) struct Diagnoses {
    workers: BTreeMap<WorkerId, Evidence>,
    pub(super) observer: Option<Arc<dyn DiagnosisObserver>>,
}

/// What was seen of one worker.
#[derive(Debug)]
struct Evidence {
    is: Option<Diagnosis>,
    since: Instant,
    is_heard: bool,
    /// Requests whose blocks it must have stored.
    served: u32,
    window: Window,
    /// What the last window said.
    last: Option<Diagnosis>,
}

/// Requests in a row that say anything.
#[derive(Debug, Default)]
struct Window {
    samples: u32,
    predicted: u64,
    actual: u64,
    block: u64,
    /// What divides each length that was found, and some of those.
    divisor: u64,
    lengths: [u64; LENGTHS_MIN],
}

impl Diagnoses {
    /// An event of a worker was heard.
    pub(super) fn hear(&mut self, worker: WorkerId, now: Instant) {
        if let Some(evidence) = self.evidence(worker, now) {
            evidence.is_heard = true;
        }
    }

    /// Takes in one request; returns what changes by it.
    pub(super) fn observe(
        &mut self,
        worker: WorkerId,
        sample: Sample,
        now: Instant,
    ) -> Option<DiagnosisChange> {
        let evidence = self.evidence(worker, now)?;
        let was = evidence.is;
        evidence.add(sample, now);
        let is = evidence.is;
        (is != was).then_some(DiagnosisChange { worker, was, is })
    }

    fn evidence(&mut self, worker: WorkerId, now: Instant) -> Option<&mut Evidence> {
        let is_full = self.workers.len() >= Slot::COUNT;
        match self.workers.entry(worker) {
            Entry::Occupied(known) => Some(known.into_mut()),
            Entry::Vacant(place) if !is_full => Some(place.insert(Evidence::new(now))),
            Entry::Vacant(_) => None,
        }
    }

    pub(super) fn forget(&mut self, instance: InstanceId) {
        self.workers.retain(|worker, _| worker.instance != instance);
    }

    pub(super) fn list(&self) -> Vec<(WorkerId, Diagnosis)> {
        self.workers.iter().filter_map(|(worker, known)| Some((*worker, known.is?))).collect()
    }
}

impl fmt::Debug for Diagnoses {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Diagnoses").field("workers", &self.workers).finish_non_exhaustive()
    }
}

impl Evidence {
    fn new(now: Instant) -> Self {
        let window = Window::default();
        Self { is: None, since: now, is_heard: false, served: 0, window, last: None }
    }

    fn add(&mut self, sample: Sample, now: Instant) {
        if !self.is_heard {
            self.served = self.served.saturating_add(u32::from(sample.prompt >= sample.block));
            let is_long = now.saturating_duration_since(self.since) >= UNHEARD;
            if self.served >= UNHEARD_REQUESTS && is_long {
                self.is = Some(Diagnosis::NoEvents);
            }
            return;
        }
        if self.is == Some(Diagnosis::NoEvents) {
            self.is = None;
        }
        self.window.add(sample);
        if self.window.samples >= WINDOW {
            let verdict = std::mem::take(&mut self.window).verdict();
            if std::mem::replace(&mut self.last, verdict) == verdict {
                self.is = verdict;
            }
        }
    }
}

impl Window {
    fn add(&mut self, sample: Sample) {
        let Sample { predicted, actual, prompt, block } = sample;
        // Who does not say what it finds agrees with nothing and contradicts nothing.
        let Some(actual) = actual else { return };
        if predicted.max(actual) == 0 {
            return;
        }
        if self.block != block {
            *self = Self { block, ..Self::default() };
        }
        self.samples += 1;
        self.predicted += predicted;
        self.actual += actual;
        // Who has the whole prompt computes its last token all the same: no length of blocks.
        if actual > 0 && actual + 1 < prompt {
            self.divisor = gcd(self.divisor, actual);
            if !self.lengths.contains(&actual)
                && let Some(free) = self.lengths.iter_mut().find(|length| **length == 0)
            {
                *free = actual;
            }
        }
    }

    fn verdict(&self) -> Option<Diagnosis> {
        let Self { predicted, actual, block, divisor, lengths, .. } = *self;
        let other_size =
            Diagnosis::BlockSizeMismatch { expected_tokens: block, found_tokens: divisor };
        if divisor > 0 && divisor % block != 0 {
            return Some(other_size);
        }
        if actual > 0 && predicted.saturating_mul(20) <= actual {
            // Of so many lengths none is an odd number of blocks by chance.
            let is_larger = divisor > block && !lengths.contains(&0);
            return Some(if is_larger { other_size } else { Diagnosis::HashMismatch });
        }
        let (less, more) = (predicted.min(actual), predicted.max(actual));
        (less.saturating_mul(2) < more).then_some(Diagnosis::StaleIndex)
    }
}

fn gcd(mut a: u64, mut b: u64) -> u64 {
    while b != 0 {
        (a, b) = (b, a % b);
    }
    a
}

/// Few enough to notice within minutes, more than a burst that the index is behind with.
const WINDOW: u32 = 32;

/// Lengths that are needed to tell a larger block.
const LENGTHS_MIN: usize = 6;

/// Requests that leave blocks, and a time in which the events of their blocks arrive.
const UNHEARD_REQUESTS: u32 = 16;
const UNHEARD: Duration = Duration::from_secs(10);

#[cfg(test)]
mod tests;
