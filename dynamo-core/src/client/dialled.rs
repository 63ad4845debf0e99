use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use crate::discovery::{Address, Instance};
use crate::engine::SharedEngine;
use crate::protocol::InstanceId;

/// The ways to instances of other processes, dialled once each.
pub(super) struct Dialled<Req, Resp>(Mutex<HashMap<InstanceId, Way<Req, Resp>>>);

struct Way<Req, Resp> {
    incarnation: u64,
    address: Address,
    engine: SharedEngine<Req, Resp>,
}

impl<Req, Resp> Default for Dialled<Req, Resp> {
    fn default() -> Self {
        Self(Mutex::default())
    }
}

impl<Req, Resp> Dialled<Req, Resp> {
    /// Returns the way to `instance`, as it is listed now.
    pub(super) fn find(&self, instance: &Instance) -> Option<SharedEngine<Req, Resp>> {
        let ways = self.ways();
        let way = ways.get(&instance.id)?;
        let is_same = way.incarnation == instance.incarnation && way.address == instance.address;
        is_same.then(|| Arc::clone(&way.engine))
    }

    /// Keeps the way to `instance`, and none to those that are not `listed` any more.
    pub(super) fn keep(
        &self,
        instance: &Instance,
        engine: &SharedEngine<Req, Resp>,
        listed: &[Instance],
    ) {
        let (address, engine) = (instance.address.clone(), Arc::clone(engine));
        let way = Way { incarnation: instance.incarnation, address, engine };
        let mut ways = self.ways();
        ways.retain(|id, _| listed.binary_search_by_key(id, |instance| instance.id).is_ok());
        ways.insert(instance.id, way);
    }

    fn ways(&self) -> MutexGuard<'_, HashMap<InstanceId, Way<Req, Resp>>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
