//! The suite of all backends, where the owner's memory is a file, or of a device.

use crate::lab::{Lab, Link, Region};
use dynamo_transfer::conformance::{self, Memory};
use dynamo_transfer::{Agent, BackendKind, Grant, MemoryKind, Rights};

/// Memory of one kind, of a lab.
struct Of<'a>(&'a Lab, MemoryKind);

impl Memory for Of<'_> {
    type Region = Region;

    async fn register(&self, owner: &Agent, segments: &[&[u8]], rights: Rights) -> Region {
        self.0.register(owner, self.1, &segments.concat(), rights).await
    }

    fn grant(&self, region: &Region) -> Grant {
        region.grant()
    }

    async fn read(&self, region: &Region) -> Vec<u8> {
        region.bytes(self.0).await
    }

    async fn close(&self, region: Region) -> Vec<u8> {
        region.close(self.0).await
    }
}

async fn conforms(kind: MemoryKind, link: Link, backend: BackendKind) {
    let lab = Lab::new(&format!("conforms-{backend}-{link:?}-{}", kind == MemoryKind::File), None);
    let (owner, initiator) = link.agents().await;
    conformance::run_over(&owner, &initiator, backend, Of(&lab, kind)).await;
    owner.shutdown().await;
    initiator.shutdown().await;
    lab.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn files_of_an_agent_reached_directly_conform() {
    conforms(MemoryKind::File, Link::SameFabric, BackendKind::File).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn files_of_an_agent_reached_over_tcp_conform() {
    conforms(MemoryKind::File, Link::Tcp, BackendKind::Tcp).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn memory_of_a_device_of_an_agent_reached_directly_conforms() {
    conforms(MemoryKind::Device(0), Link::SameFabric, BackendKind::Device).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn memory_of_a_device_of_an_agent_reached_over_tcp_conforms() {
    conforms(MemoryKind::Device(0), Link::Tcp, BackendKind::Tcp).await;
}
