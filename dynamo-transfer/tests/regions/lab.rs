//! Memory of every kind, and what it holds.

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use dynamo_transfer::device::{
    DeviceBuffer, DeviceConfig, DeviceCopier, PinnedBuffer, SoftwareDevice,
};
use dynamo_transfer::file::{FileFaults, FileOptions, FileRegion, FileStore, FileStoreConfig};
use dynamo_transfer::{
    Agent, AgentConfig, Grant, HostBuffer, LocalDescriptor, MemoryFabric, MemoryKind,
    RegisteredRegion, RemoteRegion, Result, Rights,
};

/// The engines of a process, and a folder for files.
pub(crate) struct Lab {
    pub(crate) store: FileStore,
    pub(crate) device: SoftwareDevice,
    pub(crate) copier: DeviceCopier,
    folder: PathBuf,
    files: AtomicU64,
}

pub(crate) const KINDS: [MemoryKind; 4] =
    [MemoryKind::Host, MemoryKind::Pinned, MemoryKind::Device(0), MemoryKind::File];

impl Lab {
    pub(crate) fn new(name: &str, faults: Option<FileFaults>) -> Self {
        let folder = format!("dynamo-regions-{}-{name}", std::process::id());
        let folder = std::env::temp_dir().join(folder);
        std::fs::create_dir_all(&folder).unwrap();
        let mut config = FileStoreConfig::default();
        config.faults = faults;
        let device = SoftwareDevice::new(2 << 30).unwrap();
        let limits = DeviceConfig::default().with_copy_deadline(Duration::from_secs(20));
        Self {
            store: FileStore::start(config).unwrap(),
            copier: DeviceCopier::software(&device, limits).unwrap(),
            device,
            folder,
            files: AtomicU64::new(0),
        }
    }

    pub(crate) async fn register(
        &self,
        agent: &Agent,
        kind: MemoryKind,
        bytes: &[u8],
        rights: Rights,
    ) -> Region {
        let writable = rights == Rights::PeersWrite;
        match kind {
            MemoryKind::File => {
                let number = self.files.fetch_add(1, Ordering::Relaxed);
                let path = self.folder.join(number.to_string());
                let options = FileOptions::default();
                let file = FileRegion::create(&path, bytes.len() as u64, options).unwrap();
                std::fs::write(&path, bytes).unwrap();
                Region::File(agent.register_file(&self.store, file, rights).unwrap(), path)
            }
            MemoryKind::Device(_) => {
                // Two buffers: ranges cross from one to the other.
                let (head, tail) = bytes.split_at(bytes.len() / 3);
                let mut buffers = Vec::new();
                for part in [head, tail] {
                    let buffer = self.copier.allocate(part.len()).unwrap();
                    buffer.copy_from(&self.copier, 0, part).await.unwrap();
                    buffers.push(Arc::new(buffer));
                }
                let region = agent.register_device(&self.copier, buffers.clone(), rights);
                Region::Device(region.unwrap(), buffers)
            }
            MemoryKind::Pinned => {
                let mut buffer = self.copier.allocate_pinned(bytes.len()).unwrap();
                buffer.copy_from_slice(bytes);
                let buffer = vec![buffer];
                Region::Pinned(match writable {
                    true => agent.register_peer_writable(buffer).unwrap(),
                    false => agent.register_mut(buffer).unwrap(),
                })
            }
            _ => {
                let mut buffer = HostBuffer::new(bytes.len());
                buffer.copy_from_slice(bytes);
                let buffer = vec![buffer];
                Region::Host(match writable {
                    true => agent.register_peer_writable(buffer).unwrap(),
                    false => agent.register_mut(buffer).unwrap(),
                })
            }
        }
    }

    /// Ends the engines; nothing may be left.
    pub(crate) async fn end(self) {
        self.store.shutdown(Duration::from_secs(10)).await.unwrap();
        self.copier.shutdown().await.unwrap();
        assert_eq!((self.device.in_use_bytes(), self.device.violations()), (0, 0));
        std::fs::remove_dir_all(&self.folder).unwrap();
    }
}

/// A registered region of some kind.
pub(crate) enum Region {
    Host(RegisteredRegion<HostBuffer>),
    Pinned(RegisteredRegion<PinnedBuffer>),
    Device(RegisteredRegion<Arc<DeviceBuffer>>, Vec<Arc<DeviceBuffer>>),
    File(RegisteredRegion<FileRegion>, PathBuf),
}

impl Region {
    pub(crate) fn grant(&self) -> Grant {
        match self {
            Self::Host(region) => region.grant(),
            Self::Pinned(region) => region.grant(),
            Self::Device(region, _) => region.grant(),
            Self::File(region, _) => region.grant(),
        }
    }

    pub(crate) fn kind(&self) -> MemoryKind {
        match self {
            Self::Host(region) => region.kind(),
            Self::Pinned(region) => region.kind(),
            Self::Device(region, _) => region.kind(),
            Self::File(region, _) => region.kind(),
        }
    }

    pub(crate) fn descriptor(&self, ranges: &[(u64, u64)]) -> Result<LocalDescriptor> {
        let ranges = ranges.iter().copied();
        match self {
            Self::Host(region) => region.descriptor(ranges),
            Self::Pinned(region) => region.descriptor(ranges),
            Self::Device(region, _) => region.descriptor(ranges),
            Self::File(region, _) => region.descriptor(ranges),
        }
    }

    /// Returns what the region holds.
    pub(crate) async fn bytes(&self, lab: &Lab) -> Vec<u8> {
        let of_host = |len: u64| vec![0; usize::try_from(len).unwrap()];
        match self {
            Self::Host(region) => {
                let mut bytes = of_host(region.len());
                region.read_at(0, &mut bytes).map(|()| bytes).unwrap()
            }
            Self::Pinned(region) => {
                let mut bytes = of_host(region.len());
                region.read_at(0, &mut bytes).map(|()| bytes).unwrap()
            }
            Self::Device(_, buffers) => held(lab, buffers).await,
            Self::File(_, path) => std::fs::read(path).unwrap(),
        }
    }

    /// Closes the region; returns what it held.
    pub(crate) async fn close(self, lab: &Lab) -> Vec<u8> {
        match self {
            Self::Host(region) => region.close().await[0].to_vec(),
            Self::Pinned(region) => region.close().await[0].to_vec(),
            Self::Device(region, _) => held(lab, &region.close().await).await,
            Self::File(region, path) => {
                drop(region.close().await);
                let bytes = std::fs::read(&path).unwrap();
                std::fs::remove_file(path).unwrap();
                bytes
            }
        }
    }
}

async fn held(lab: &Lab, buffers: &[Arc<DeviceBuffer>]) -> Vec<u8> {
    let mut bytes = Vec::new();
    for buffer in buffers {
        bytes.extend(buffer.copy_to(&lab.copier, 0, buffer.len()).await.unwrap());
    }
    bytes
}

/// How agents reach each other.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Link {
    SameAgent,
    SameFabric,
    Tcp,
}

impl Link {
    /// Starts an owner and an initiator.
    pub(crate) async fn agents(self) -> (Agent, Agent) {
        let (owner, initiator) = (
            AgentConfig::default().with_name("owner"),
            AgentConfig::default().with_name("initiator"),
        );
        if self == Self::Tcp {
            // Shared memory, which does not reach files and devices, would go first.
            let owner = owner.with_tcp_listen("127.0.0.1:0".parse().unwrap());
            let owner = if cfg!(target_os = "linux") { owner.with_shm(true) } else { owner };
            return (Agent::start(owner).await.unwrap(), Agent::start(initiator).await.unwrap());
        }
        let fabric = MemoryFabric::new();
        let owner = Agent::start(owner.with_fabric(fabric.clone())).await.unwrap();
        if self == Self::SameAgent {
            return (owner.clone(), owner);
        }
        (owner, Agent::start(initiator.with_fabric(fabric)).await.unwrap())
    }
}

/// Loads what the owner tells of a region.
pub(crate) fn load(owner: &Agent, initiator: &Agent, region: &Region) -> RemoteRegion {
    let metadata = owner.metadata([region.grant()]).unwrap();
    initiator.load_metadata(&metadata).unwrap().regions()[0].clone()
}

pub(crate) fn random(seed: u64, len: usize) -> Vec<u8> {
    let mut state = seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1;
    let mut bytes = vec![0; len.next_multiple_of(8)];
    for word in bytes.chunks_exact_mut(8) {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        word.copy_from_slice(&state.to_le_bytes());
    }
    bytes.truncate(len);
    bytes
}
