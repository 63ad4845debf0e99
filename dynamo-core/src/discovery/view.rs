use std::collections::BTreeMap;
use std::sync::Arc;

use super::{Change, Instance};
use crate::protocol::InstanceId;

/// The set of instances that a sequence of [`Change`]s amounts to; pure.
///
/// A lower incarnation of a known id is ignored: it is a ghost of a restarted instance. While the
/// directory is degraded the last good set stays.
#[derive(Debug, Clone, Default)]
pub struct View {
    instances: BTreeMap<InstanceId, Instance>,
    degraded: bool,
}

impl View {
    /// Folds one change into the view.
    pub fn apply(&mut self, change: Change) {
        match change {
            Change::Snapshot(instances) => {
                let known = std::mem::take(&mut self.instances);
                for instance in instances {
                    let newest = match known.get(&instance.id) {
                        Some(old) if old.incarnation > instance.incarnation => old.clone(),
                        _ => instance,
                    };
                    self.instances.insert(newest.id, newest);
                }
            }
            Change::Upsert(instance) => {
                let stale = self
                    .instances
                    .get(&instance.id)
                    .is_some_and(|known| known.incarnation > instance.incarnation);
                if !stale {
                    self.instances.insert(instance.id, instance);
                }
            }
            Change::Remove(id) => {
                self.instances.remove(&id);
            }
            Change::Degraded => self.degraded = true,
            Change::Recovered => self.degraded = false,
        }
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
        view.apply(Change::Snapshot(vec![]));
        assert!(!view.is_degraded() && view.instances().is_empty());
    }
}
