use std::sync::Arc;

use dynamo_core::protocol::{BlockSize, KvEvent, Usage, WorkerId};

use super::diagnosis::{Diagnosis, DiagnosisObserver, Sample};
use super::intake::FeedId;
use super::stats::EventStats;
use crate::router::KvRouter;

/// What events and answers tell a router.
impl KvRouter {
    /// Takes in what a worker says of its cache. Where events are missing, what was known is dropped.
    pub fn apply(&self, event: &KvEvent) {
        self.apply_from(event, None);
    }

    /// Compares what a worker found in its cache for a request with what was predicted, both in
    /// tokens of the prompt.
    ///
    /// `block_size` is that of the request's hashes, `usage` what the worker said. To be called once
    /// for each request, by whoever sees its answer; [`PrefillDecode`](crate::PrefillDecode) does. Says
    /// nothing where prefixes are known by [decisions](crate::PrefixSource::Decisions).
    pub fn observe_usage(
        &self,
        worker: WorkerId,
        predicted_tokens: usize,
        block_size: BlockSize,
        usage: &Usage,
    ) {
        // Where no events are published nothing is predicted that could be compared.
        if self.is_decided() {
            return;
        }
        let sample = Sample {
            predicted: predicted_tokens as u64,
            actual: usage.cached_tokens.map(u64::from),
            prompt: usage.prompt_tokens.into(),
            block: block_size.tokens() as u64,
        };
        let mut diagnoses = self.intake().diagnoses();
        // Of who was forgotten before its last answers ended nothing would ever be forgotten again.
        if !self.knows(worker) {
            return;
        }
        let change = diagnoses.observe(worker, sample, self.clock().now());
        let Some(change) = change else { return };
        let observer = diagnoses.observer.clone();
        drop(diagnoses);
        match (change.is, change.was) {
            (Some(is), _) => tracing::warn!(%worker, "the worker {is}"),
            (None, was) => {
                tracing::info!(%worker, ?was, "nothing is wrong with the worker any more")
            }
        }
        observer.iter().for_each(|observer| observer.changed(&change));
    }

    /// Tells `observer` from now on, instead of any before, what is found wrong with a worker, and when
    /// that is over.
    pub fn set_diagnosis_observer(&self, observer: impl DiagnosisObserver) {
        self.intake().diagnoses().observer = Some(Arc::new(observer));
    }

    /// Returns the workers that something is wrong with, and what.
    pub fn diagnoses(&self) -> Vec<(WorkerId, Diagnosis)> {
        self.intake().diagnoses().list()
    }

    /// Returns what events have come to.
    pub fn event_stats(&self) -> EventStats {
        self.intake().stats()
    }

    pub(super) fn apply_from(&self, event: &KvEvent, feed: Option<FeedId>) {
        self.intake().apply(event, feed, self.clock().now(), |worker| self.hear_of(worker));
    }

    pub(super) fn expect(&self, worker: WorkerId, feed: FeedId) {
        self.intake().expect(worker, feed, self.clock().now(), |worker| self.hear_of(worker));
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;
    use std::time::Duration;

    use dynamo_core::protocol::KvChange;
    use dynamo_core::time::ManualClock;

    use super::super::diagnosis::DiagnosisChange;
    use super::*;
    use crate::fixtures::{self, instance};
    use crate::router::{Constraints, RouterConfig};

    #[test]
    fn a_worker_that_serves_and_is_not_heard_is_told_once_and_once_more_when_it_is() {
        let (clock, told) = (Arc::new(ManualClock::new()), Arc::new(Mutex::new(Vec::new())));
        let router = KvRouter::new(RouterConfig::default(), Arc::<ManualClock>::clone(&clock));
        let tell = Arc::clone(&told);
        router.set_diagnosis_observer(move |change: &DiagnosisChange| {
            tell.lock().unwrap().push((change.worker, change.is));
        });
        let worker = fixtures::worker(1);
        router.set_workers(&[instance(1)]).unwrap();
        let usage = Usage { prompt_tokens: 160, ..Usage::default() };
        let answer = |router: &KvRouter| {
            router.observe_usage(worker, 0, BlockSize::DEFAULT, &usage);
            clock.advance(Duration::from_secs(1));
        };
        (0..100).for_each(|_| answer(&router));
        assert_eq!(router.diagnoses(), [(worker, Diagnosis::NoEvents)]);
        let change = KvChange::AllBlocksCleared;
        router.apply(&KvEvent { worker, epoch: 1, seq: 0, change });
        answer(&router);
        let changes = [(worker, Some(Diagnosis::NoEvents)), (worker, None)];
        assert_eq!(*told.lock().unwrap(), changes);
        assert!(router.diagnoses().is_empty());
    }

    #[test]
    fn of_a_worker_that_is_gone_nothing_is_diagnosed_however_late_its_answers_end() {
        let clock = Arc::new(ManualClock::new());
        let router = KvRouter::new(RouterConfig::default(), Arc::<ManualClock>::clone(&clock));
        let usage = Usage { prompt_tokens: 160, ..Usage::default() };
        let answers = || {
            for _ in 0..100 {
                router.observe_usage(fixtures::worker(1), 0, BlockSize::DEFAULT, &usage);
                clock.advance(Duration::from_secs(1));
            }
        };
        router.set_workers(&[instance(1)]).unwrap();
        let request = fixtures::request(0..64);
        let decision = router.route(&request, &Constraints::default()).unwrap();
        answers();
        assert_eq!(router.diagnoses(), [(fixtures::worker(1), Diagnosis::NoEvents)]);
        router.set_workers(&[instance(2)]).unwrap();
        clock.advance(Duration::from_secs(10));
        router.tidy();
        assert!(router.diagnoses().is_empty());
        answers();
        assert!(router.diagnoses().is_empty(), "its booking is all that is left of it");
        drop(decision);
    }
}
