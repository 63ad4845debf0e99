use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, Mutex, PoisonError};

use async_trait::async_trait;
use futures::StreamExt;
use futures::stream::BoxStream;
use tokio::sync::watch;

use super::{Change, Discovery, Instance, Registration};
use crate::error::{Error, ErrorKind, Result};
use crate::name::EndpointPath;
use crate::protocol::InstanceId;

/// A directory inside the process: the embedded default.
///
/// Watches are level-triggered: each change is a snapshot, and a slow watcher sees the latest one,
/// so nothing queues.
#[derive(Debug, Clone, Default)]
pub struct MemoryDiscovery {
    endpoints: Arc<Mutex<HashMap<EndpointPath, watch::Sender<Instances>>>>,
}

type Instances = BTreeMap<InstanceId, Instance>;

impl MemoryDiscovery {
    fn with_endpoint<T>(
        &self,
        endpoint: &EndpointPath,
        act: impl FnOnce(&watch::Sender<Instances>) -> T,
    ) -> T {
        let mut endpoints = self.endpoints.lock().unwrap_or_else(PoisonError::into_inner);
        act(endpoints.entry(endpoint.clone()).or_default())
    }
}

#[async_trait]
impl Discovery for MemoryDiscovery {
    async fn register(&self, instance: Instance) -> Result<Registration> {
        let (id, incarnation) = (instance.id, instance.incarnation);
        let endpoint = instance.endpoint.clone();
        self.with_endpoint(&endpoint, |sender| {
            let known = sender.borrow().get(&id).map(|known| known.incarnation);
            if known.is_some_and(|known| known >= incarnation) {
                return Err(Error::new(
                    ErrorKind::Conflict,
                    format!("{instance} is registered already"),
                ));
            }
            sender.send_modify(|instances| {
                instances.insert(id, instance);
            });
            Ok(())
        })?;
        let discovery = self.clone();
        Ok(Registration::new(move || {
            discovery.with_endpoint(&endpoint, |sender| {
                sender.send_if_modified(|instances| {
                    let ours = instances.get(&id).is_some_and(|i| i.incarnation == incarnation);
                    ours && instances.remove(&id).is_some()
                })
            });
        }))
    }

    async fn watch(&self, endpoint: &EndpointPath) -> Result<BoxStream<'static, Change>> {
        let mut receiver = self.with_endpoint(endpoint, watch::Sender::subscribe);
        receiver.mark_changed();
        let changes = futures::stream::unfold(receiver, |mut receiver| async move {
            receiver.changed().await.ok()?;
            let instances = receiver.borrow_and_update().values().cloned().collect();
            Some((Change::Snapshot(instances), receiver))
        });
        Ok(changes.boxed())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn memory_discovery_conforms() {
        super::super::conformance::run(&MemoryDiscovery::default()).await;
    }
}
