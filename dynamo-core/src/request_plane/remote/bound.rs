use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, Mutex};

use super::super::Ingress;
use super::lock;
use crate::error::{Error, ErrorKind, Result};
use crate::name::EndpointPath;
use crate::protocol::InstanceId;

/// What can be asked here: endpoint and instance → incarnation → entrance.
#[derive(Default)]
pub(crate) struct Bound(Mutex<HashMap<Key, Incarnations>>);

type Key = (String, u64);
type Incarnations = BTreeMap<u64, Ingress>;

impl Bound {
    /// Makes an engine reachable until the returned function is called.
    pub(crate) fn insert(
        self: &Arc<Self>,
        endpoint: &EndpointPath,
        (id, incarnation): (InstanceId, u64),
        ingress: Ingress,
    ) -> Result<impl FnOnce() + Send + Sync + 'static> {
        let key = (endpoint.to_string(), id.0);
        let mut bound = lock(&self.0);
        let incarnations = bound.entry(key.clone()).or_default();
        if incarnations.contains_key(&incarnation) {
            let message = format!("instance {id} of {endpoint} is bound");
            return Err(Error::new(ErrorKind::Conflict, message));
        }
        incarnations.insert(incarnation, ingress);
        drop(bound);
        let own = Arc::clone(self);
        Ok(move || {
            let mut bound = lock(&own.0);
            if let Some(incarnations) = bound.get_mut(&key) {
                incarnations.remove(&incarnation);
                if incarnations.is_empty() {
                    bound.remove(&key);
                }
            }
        })
    }

    /// Returns the entrance of an incarnation, or of the last one before it: an instance whose lease
    /// was lost goes on under a later one.
    pub(super) fn find(&self, key: &Key, incarnation: u64) -> Result<Ingress> {
        let bound = lock(&self.0);
        let found = bound.get(key).and_then(|known| known.range(..=incarnation).next_back());
        found.map(|(_, ingress)| ingress.clone()).ok_or_else(|| {
            let message = format!("instance {:x}.{incarnation} of {} is gone", key.1, key.0);
            Error::new(ErrorKind::Unavailable, message).unprocessed()
        })
    }
}
