use async_trait::async_trait;
use futures::stream::BoxStream;

use super::local::Local;
use super::{Change, Discovery, Instance, Registration};
use crate::error::Result;
use crate::name::EndpointPath;

/// A directory inside the process: the embedded default; a clone is the same directory.
///
/// Watches are level-triggered: a slow one is told what the present differs by, so nothing queues.
#[derive(Debug, Clone, Default)]
pub struct MemoryDiscovery(Local);

#[async_trait]
impl Discovery for MemoryDiscovery {
    async fn register(&self, instance: Instance) -> Result<Registration> {
        self.0.register(instance)
    }

    async fn watch(&self, endpoint: &EndpointPath) -> Result<BoxStream<'static, Change>> {
        Ok(self.0.watch(endpoint))
    }
}

#[cfg(test)]
mod tests {
    use super::super::conformance::{self, Reach};
    use super::*;

    #[tokio::test]
    async fn memory_discovery_conforms() {
        conformance::run(&MemoryDiscovery::default(), Reach::Process).await;
    }
}
