use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

use async_trait::async_trait;

use super::{Binding, Ingress, RequestPlane};
use crate::discovery::{Address, Instance};
use crate::error::{Error, ErrorKind, Result};
use crate::name::EndpointPath;
use crate::protocol::InstanceId;

/// The plane inside the process: values are moved, nothing is serialised, no task is spawned.
#[derive(Debug, Clone, Default)]
pub struct MemoryRequestPlane {
    bound: Arc<Mutex<HashMap<Address, Ingress>>>,
}

#[async_trait]
impl RequestPlane for MemoryRequestPlane {
    async fn bind(
        &self,
        endpoint: &EndpointPath,
        (id, incarnation): (InstanceId, u64),
        ingress: Ingress,
    ) -> Result<Binding> {
        let address = Address(format!("memory:{endpoint}/{id}.{incarnation}"));
        let mut bound = self.bound.lock().unwrap_or_else(PoisonError::into_inner);
        if bound.contains_key(&address) {
            return Err(Error::new(ErrorKind::Conflict, format!("address {address} is bound")));
        }
        bound.insert(address.clone(), ingress);
        drop(bound);
        let (bound, key) = (Arc::clone(&self.bound), address.clone());
        Ok(Binding::new(address, move || {
            bound.lock().unwrap_or_else(PoisonError::into_inner).remove(&key);
        }))
    }

    async fn dial(&self, instance: &Instance) -> Result<Ingress> {
        let bound = self.bound.lock().unwrap_or_else(PoisonError::into_inner);
        bound.get(&instance.address).cloned().ok_or_else(|| {
            Error::new(ErrorKind::Unavailable, format!("{instance} is gone")).unprocessed()
        })
    }
}
