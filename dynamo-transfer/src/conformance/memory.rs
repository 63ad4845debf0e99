use crate::{Agent, Grant, HostBuffer, RegisteredRegion, Rights};

/// How the owner's memory is made and registered. Functions that allocate buffers are memory of hosts,
/// as they make it.
pub trait Memory {
    /// What is registered.
    type Region;

    /// Registers memory of `owner` that holds `segments`, one behind the other.
    fn register(
        &self,
        owner: &Agent,
        segments: &[&[u8]],
        rights: Rights,
    ) -> impl Future<Output = Self::Region>;

    /// Returns what the region was registered for.
    fn grant(&self, region: &Self::Region) -> Grant;

    /// Returns what the region holds.
    fn read(&self, region: &Self::Region) -> impl Future<Output = Vec<u8>>;

    /// Closes the region; returns what it held.
    fn close(&self, region: Self::Region) -> impl Future<Output = Vec<u8>>;

    /// Allocates memory of the initiator: of its host, whatever the owner's is.
    fn allocate(&self, len: usize) -> HostBuffer {
        HostBuffer::new(len)
    }
}

impl<F: Fn(usize) -> HostBuffer> Memory for F {
    type Region = RegisteredRegion<HostBuffer>;

    async fn register(&self, owner: &Agent, segments: &[&[u8]], rights: Rights) -> Self::Region {
        let filled = |bytes: &&[u8]| {
            let mut buffer = self(bytes.len());
            buffer.copy_from_slice(bytes);
            buffer
        };
        let buffers = segments.iter().map(filled).collect();
        let region = match rights {
            Rights::ReadOnly => owner.register(buffers),
            Rights::OwnerWrites => owner.register_mut(buffers),
            Rights::PeersWrite => owner.register_peer_writable(buffers),
        };
        region.expect("registers")
    }

    fn grant(&self, region: &Self::Region) -> Grant {
        region.grant()
    }

    async fn read(&self, region: &Self::Region) -> Vec<u8> {
        let mut bytes = vec![0; usize::try_from(region.len()).expect("small")];
        region.read_at(0, &mut bytes).expect("inside");
        bytes
    }

    async fn close(&self, region: Self::Region) -> Vec<u8> {
        region.close().await.iter().map(|buffer| &buffer[..]).collect::<Vec<_>>().concat()
    }

    fn allocate(&self, len: usize) -> HostBuffer {
        self(len)
    }
}
