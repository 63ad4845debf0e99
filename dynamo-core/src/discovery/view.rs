use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use super::{Change, Instance};
use crate::protocol::InstanceId;

/// The set of instances that a sequence of [`Change`]s amounts to; pure.
///
/// A lower incarnation of a known id is ignored: it is a ghost of a restarted instance. While the
/// directory is degraded the last good set stays. Whom a snapshot lacks the directory has only lost
/// sight of: they stay, doubtful, until someone has [asked](Self::settle) them.
#[derive(Debug, Clone, Default)]
pub struct View {
    instances: BTreeMap<InstanceId, Instance>,
    doubtful: BTreeSet<InstanceId>,
    degraded: bool,
}

impl View {
    /// Folds one change into the view.
    pub fn apply(&mut self, change: Change) {
        match change {
            Change::Snapshot(instances) => {
                let listed: BTreeSet<_> = instances.iter().map(|instance| instance.id).collect();
                instances.into_iter().for_each(|instance| self.upsert(instance));
                let missing = self.instances.keys().filter(|id| !listed.contains(id));
                self.doubtful.extend(missing);
            }
            Change::Upsert(instance) => self.upsert(instance),
            Change::Remove(id) => {
                self.instances.remove(&id);
                self.doubtful.remove(&id);
            }
            Change::Degraded => self.degraded = true,
            Change::Recovered => self.degraded = false,
        }
    }

    fn upsert(&mut self, instance: Instance) {
        self.doubtful.remove(&instance.id);
        let known = self.instances.get(&instance.id);
        if known.is_none_or(|known| known.incarnation <= instance.incarnation) {
            self.instances.insert(instance.id, instance);
        }
    }

    /// Returns the instances that a snapshot lacked, and nobody has said to be gone.
    pub fn doubtful(&self) -> impl Iterator<Item = InstanceId> {
        self.doubtful.iter().copied()
    }

    /// Says whether a doubtful instance has answered; one that has not is gone. Tells whether that
    /// changed anything.
    pub fn settle(&mut self, id: InstanceId, is_there: bool) -> bool {
        if is_there || !self.doubtful.remove(&id) {
            return false;
        }
        self.instances.remove(&id).is_some()
    }

    /// Returns an instance.
    pub fn get(&self, id: InstanceId) -> Option<&Instance> {
        self.instances.get(&id)
    }

    /// Returns the instances, ordered by id.
    pub fn instances(&self) -> Arc<[Instance]> {
        self.instances.values().cloned().collect()
    }

    /// Tells whether the directory is out of reach, so that the set may be stale.
    pub fn is_degraded(&self) -> bool {
        self.degraded
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::discovery::Address;
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

    #[test]
    fn a_lower_incarnation_never_replaces_a_higher_one() {
        let mut view = View::default();
        view.apply(Change::Upsert(instance(1, 2)));
        view.apply(Change::Upsert(instance(1, 1)));
        assert_eq!(view.instances()[0].incarnation, 2);
        view.apply(Change::Snapshot(vec![instance(1, 1), instance(2, 0)]));
        let incarnations: Vec<_> = view.instances().iter().map(|i| i.incarnation).collect();
        assert_eq!(incarnations, [2, 0]);
    }

    #[test]
    fn a_degraded_directory_keeps_the_last_good_set() {
        let mut view = View::default();
        view.apply(Change::Snapshot(vec![instance(1, 0)]));
        view.apply(Change::Degraded);
        assert!(view.is_degraded());
        assert_eq!(view.instances().len(), 1);
        view.apply(Change::Recovered);
        view.apply(Change::Remove(InstanceId(1)));
        assert!(!view.is_degraded() && view.instances().is_empty());
    }

    #[test]
    fn whom_a_snapshot_lacks_stays_until_asked() {
        let ids = |view: &View| -> Vec<_> { view.instances().iter().map(|i| i.id.0).collect() };
        let doubtful = |view: &View| -> Vec<_> { view.doubtful().map(|id| id.0).collect() };
        let mut view = View::default();
        view.apply(Change::Snapshot((0..2).map(|id| instance(id, 0)).collect()));
        assert_eq!((ids(&view), doubtful(&view)), (vec![0, 1], vec![]));

        view.apply(Change::Snapshot(vec![]));
        assert_eq!((ids(&view), doubtful(&view)), (vec![0, 1], vec![0, 1]));
        assert!(!view.settle(InstanceId(0), true) && view.settle(InstanceId(1), false));
        assert_eq!((ids(&view), doubtful(&view)), (vec![0], vec![0]));
        // Those who come back are sure again, those in doubt stay so.
        view.apply(Change::Upsert(instance(2, 0)));
        view.apply(Change::Snapshot(vec![instance(2, 0)]));
        assert_eq!((ids(&view), doubtful(&view)), (vec![0, 2], vec![0]));
        view.apply(Change::Snapshot(vec![instance(0, 1), instance(2, 0)]));
        assert_eq!((ids(&view), doubtful(&view)), (vec![0, 2], vec![]));
        view.apply(Change::Snapshot(vec![]));
        view.apply(Change::Remove(InstanceId(2)));
        assert_eq!((ids(&view), doubtful(&view)), (vec![0], vec![0]));
    }
}
