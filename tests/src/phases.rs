//! What a test and the processes that it starts have in common: one endpoint, and who calls it.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, Result};
use dynamo_core::discovery::{Address, Discovery, MemoryDiscovery, Registration};
use dynamo_core::engine::layers::RetryPolicy;
use dynamo_core::event_plane::MemoryEventPlane;
use dynamo_core::protocol::InstanceId;
use dynamo_core::request_plane::{TcpConfig, TcpRequestPlane};
use dynamo_core::{Client, Endpoint, Instance, Runtime};

/// Returns the endpoint; a request says where its answer waits.
pub fn endpoint(runtime: &Runtime) -> Result<Endpoint<String, u32>> {
    Ok(runtime.namespace("faults")?.component("peer")?.endpoint("answer")?)
}

/// Calls one instance over TCP; once, so that its failure is seen.
#[derive(Debug)]
pub struct Caller {
    /// The client.
    pub client: Client<String, u32>,
    /// What makes the instance known; without it, it is not.
    registration: Option<Registration>,
    runtime: Runtime,
    plane: Arc<TcpRequestPlane>,
}

impl Caller {
    /// Makes an instance known, and a client for it.
    pub async fn start(address: &str, id: u64) -> Result<Self> {
        let discovery = Arc::<MemoryDiscovery>::default();
        let config = TcpConfig::default().with_plaintext_allowed();
        let plane = Arc::new(TcpRequestPlane::start(config).await?);
        let events = Arc::<MemoryEventPlane>::default();
        let ours = Arc::<TcpRequestPlane>::clone(&plane);
        let runtime = Runtime::new(Arc::<MemoryDiscovery>::clone(&discovery), ours, events);
        let endpoint = endpoint(&runtime)?;
        let (address, labels) = (Address(address.to_owned()), BTreeMap::new());
        let (id, path) = (InstanceId(id), endpoint.path().clone());
        let instance = Instance { id, incarnation: 0, endpoint: path, address, labels };
        let registration = Some(discovery.register(instance).await?);
        let client = endpoint.client().await?;
        let client = client.with_retry(RetryPolicy::default().with_attempts_max(1));
        Ok(Self { client, registration, runtime, plane })
    }

    /// Takes the instance off the list; on return the client knows of none, within twenty seconds.
    pub async fn lose(&mut self) -> Result<()> {
        self.registration = None;
        let lost = async {
            while !self.client.instances().is_empty() {
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
        };
        tokio::time::timeout(LOST_MAX, lost).await.context("the client knows it still")
    }

    /// Returns how many connections have been made, whether or not anyone has greeted there.
    pub fn connections(&self) -> u64 {
        self.plane.stats().connections_total
    }

    /// Ends everything, within twenty seconds.
    pub async fn end(self) -> Result<()> {
        drop(self.client);
        Ok(self.runtime.shutdown(Duration::from_secs(20)).await?)
    }
}

const LOST_MAX: Duration = Duration::from_secs(20);
