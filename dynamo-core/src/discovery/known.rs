//! What a directory knows of an endpoint, and how a watch says it: level-triggered.

use std::collections::{BTreeMap, VecDeque};

use futures::stream::{self, Stream};
use tokio::sync::watch;

use super::{Change, Instance};
use crate::protocol::InstanceId;

pub(super) type Instances = BTreeMap<InstanceId, Instance>;

/// What is known of an endpoint at one moment.
#[derive(Debug, Clone, Default)]
pub(super) struct Known {
    /// The instances; `None` before the first look.
    pub(super) instances: Option<Instances>,
    /// The directory does not answer.
    pub(super) is_degraded: bool,
    /// Grows when instances are dropped that nobody has said to be gone.
    pub(super) absences: u64,
    /// How many of the looks that watches have asked for `instances` is as new as.
    pub(super) looks: u64,
}

/// Says what is known, and then what changes of it.
///
/// The first snapshot is as new as the look number `look`, unless the directory is away. Nothing
/// queues while nobody polls: what is said next is what the latest known differs by.
pub(super) fn changes(
    known: watch::Receiver<Known>,
    look: u64,
) -> impl Stream<Item = Change> + Send + 'static {
    let said = Said { look, ..Said::default() };
    stream::unfold((known, said), |(mut known, mut said)| async move {
        loop {
            if let Some(change) = said.next.pop_front() {
                return Some((change, (known, said)));
            }
            said.compare(&known.borrow_and_update());
            if said.next.is_empty() {
                known.changed().await.ok()?;
            }
        }
    })
}

/// What a watch has been told; pure.
#[derive(Debug, Default)]
struct Said {
    look: u64,
    instances: Option<Instances>,
    is_degraded: bool,
    absences: u64,
    /// What is to be said: at most what two sets of instances can differ by, and a word.
    next: VecDeque<Change>,
}

impl Said {
    fn compare(&mut self, now: &Known) {
        let Some(instances) = &now.instances else { return };
        let is_back = self.is_degraded && !now.is_degraded;
        let is_complete = match &mut self.instances {
            None if now.looks < self.look && !now.is_degraded => return,
            Some(said) if now.absences == self.absences => {
                differences(said, instances, &mut self.next);
                !is_back
            }
            _ => false,
        };
        if is_back {
            self.next.push_back(Change::Recovered);
        }
        if !is_complete {
            self.say_all(instances);
        }
        if now.is_degraded && !self.is_degraded {
            self.next.push_back(Change::Degraded);
        }
        (self.is_degraded, self.absences) = (now.is_degraded, now.absences);
    }

    fn say_all(&mut self, instances: &Instances) {
        for (id, said) in self.instances.iter().flatten() {
            if instances.get(id).is_some_and(|now| now.incarnation < said.incarnation) {
                self.next.push_back(Change::Remove(*id));
            }
        }
        self.next.push_back(Change::Snapshot(instances.values().cloned().collect()));
        self.instances = Some(instances.clone());
    }
}

/// Brings `said` to `now`, and says by which changes: who comes first, so that a replaced fleet is
/// never an empty one.
fn differences(said: &mut Instances, now: &Instances, next: &mut VecDeque<Change>) {
    for (id, instance) in now {
        match said.get(id) {
            Some(known) if known == instance => continue,
            // The old one has left in between; without the word, this one would be a ghost.
            Some(known) if known.incarnation > instance.incarnation => {
                next.push_back(Change::Remove(*id));
            }
            _ => {}
        }
        next.push_back(Change::Upsert(instance.clone()));
        said.insert(*id, instance.clone());
    }
    said.retain(|id, _| {
        let is_there = now.contains_key(id);
        if !is_there {
            next.push_back(Change::Remove(*id));
        }
        is_there
    });
}

#[cfg(test)]
mod tests {
    use futures::{FutureExt, StreamExt};
    use proptest::prelude::*;

    use super::*;
    use crate::discovery::{Address, View};
    use crate::name::{EndpointPath, Name};

    fn instance(id: u64, incarnation: u64) -> Instance {
        let name = Name::new("x").unwrap();
        Instance {
            id: InstanceId(id),
            incarnation,
            endpoint: EndpointPath {
                namespace: name.clone(),
                component: name.clone(),
                endpoint: name,
            },
            address: Address(format!("a{incarnation}")),
            labels: BTreeMap::new(),
        }
    }

    fn instances(of: &[(u64, u64)]) -> Instances {
        of.iter().map(|(id, incarnation)| (InstanceId(*id), instance(*id, *incarnation))).collect()
    }

    fn known(of: &[(u64, u64)]) -> Known {
        Known { instances: Some(instances(of)), ..Known::default() }
    }

    #[test]
    fn leaving_is_a_word_absence_is_a_snapshot_and_who_comes_is_said_first() {
        let (sender, receiver) = watch::channel(Known::default());
        let mut watch = Box::pin(changes(receiver, 0));
        let mut next = || watch.next().now_or_never().map(|change| change.unwrap());
        assert_eq!(next(), None, "nothing is known");
        sender.send_replace(known(&[(1, 0), (2, 5)]));
        assert_eq!(next(), Some(Change::Snapshot(vec![instance(1, 0), instance(2, 5)])));
        sender.send_replace(known(&[(2, 6), (3, 0)]));
        assert_eq!(next(), Some(Change::Upsert(instance(2, 6))));
        assert_eq!(next(), Some(Change::Upsert(instance(3, 0))));
        assert_eq!(next(), Some(Change::Remove(InstanceId(1))));
        assert_eq!(next(), None);
        sender.send_replace(Known { absences: 1, ..known(&[(3, 0)]) });
        assert_eq!(next(), Some(Change::Snapshot(vec![instance(3, 0)])));
        // It has left, and another of its id has come.
        sender.send_replace(Known { absences: 1, ..known(&[(3, 4)]) });
        assert_eq!(next(), Some(Change::Upsert(instance(3, 4))));
        sender.send_replace(Known { absences: 1, ..known(&[(3, 1)]) });
        assert_eq!(next(), Some(Change::Remove(InstanceId(3))));
        assert_eq!(next(), Some(Change::Upsert(instance(3, 1))));
        assert_eq!(next(), None);
    }

    #[test]
    fn a_snapshot_follows_the_return_of_the_directory_and_the_first_one_is_as_new_as_asked() {
        let (sender, receiver) = watch::channel(known(&[(1, 0)]));
        let mut watch = Box::pin(changes(receiver.clone(), 2));
        let mut next = || watch.next().now_or_never().map(|change| change.unwrap());
        assert_eq!(next(), None, "the look is older than the watch");
        sender.send_replace(Known { looks: 2, ..known(&[(2, 0)]) });
        assert_eq!(next(), Some(Change::Snapshot(vec![instance(2, 0)])));
        sender.send_replace(Known { is_degraded: true, ..known(&[(2, 0)]) });
        assert_eq!((next(), next()), (Some(Change::Degraded), None));
        sender.send_replace(known(&[(2, 0)]));
        assert_eq!(next(), Some(Change::Recovered));
        assert_eq!(next(), Some(Change::Snapshot(vec![instance(2, 0)])));
        assert_eq!(next(), None);
        // Without a directory there is no newer look than the last.
        sender.send_replace(Known { is_degraded: true, ..known(&[(2, 0)]) });
        let mut late = Box::pin(changes(receiver, 9));
        assert_eq!(
            late.next().now_or_never().flatten(),
            Some(Change::Snapshot(vec![instance(2, 0)]))
        );
        assert_eq!(late.next().now_or_never().flatten(), Some(Change::Degraded));
        drop((sender, watch));
        assert_eq!(late.next().now_or_never(), Some(None), "it ends with its directory");
    }

    proptest! {
        #[test]
        fn whatever_is_missed_the_view_ends_at_the_truth_by_few_changes(
            steps in prop::collection::vec(
                (prop::collection::btree_map(0_u64..6, 0_u64..3, 0..6), 0..8_u8, any::<bool>()),
                1..20,
            ),
        ) {
            let (sender, receiver) = watch::channel(Known::default());
            let mut watch = Box::pin(changes(receiver, 0));
            let (mut view, mut absences) = (View::default(), 0);
            for (step, (truth, kind, is_polled)) in steps.iter().enumerate() {
                absences += u64::from(*kind == 0);
                let truth: Vec<_> = truth.iter().map(|(id, inc)| (*id, *inc)).collect();
                let is_degraded = *kind == 1;
                sender.send_replace(Known { is_degraded, absences, ..known(&truth) });
                if !is_polled && step + 1 < steps.len() {
                    continue;
                }
                let mut count = 0;
                while let Some(change) = watch.next().now_or_never() {
                    view.apply(change.unwrap());
                    count += 1;
                }
                // Whom a snapshot lacks is asked, and does not answer.
                for id in view.doubtful().collect::<Vec<_>>() {
                    view.settle(id, false);
                }
                prop_assert!(count <= 6 + 6 + 2, "{} changes", count);
                prop_assert_eq!(view.is_degraded(), is_degraded);
                let seen: Vec<_> =
                    view.instances().iter().map(|i| (i.id.0, i.incarnation)).collect();
                prop_assert_eq!(seen, truth);
            }
        }
    }
}
