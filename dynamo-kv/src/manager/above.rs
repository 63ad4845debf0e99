use std::sync::Arc;

use dynamo_core::{Error, ErrorKind, Result};

use super::{BlockManager, ManagerConfig};
use crate::layout::RankLayout;

impl BlockManager {
    /// Creates the manager of a pool of device memory above one of host memory, which is the one tier of
    /// `config` ([`TierConfig::host`](crate::TierConfig::host)).
    ///
    /// Both are of one worker: what changes in either is published where that manager publishes, in its
    /// epoch and in one order, and [`snapshot`](Self::snapshot) of this one has the blocks of both. Fails
    /// like [`new`](Self::new), with [`InvalidArgument`](ErrorKind::InvalidArgument) also if there is no
    /// such tier or its blocks have another layout, and with [`Conflict`](ErrorKind::Conflict) if a pool
    /// was made above it before: a worker's events know one device.
    ///
    /// ```
    /// use dynamo_core::protocol::{BlockSize, CacheNamespace, InstanceId, WorkerId};
    /// use dynamo_kv::{
    ///     BlockLayout, BlockManager, BlockMemory, DType, ManagerConfig, TierConfig, TiersConfig,
    ///     TokenSequence,
    /// };
    /// use dynamo_transfer::device::{DeviceConfig, DeviceCopier, SoftwareDevice};
    ///
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// // `DeviceCopier::cuda(0, config)` where there is a GPU.
    /// let copier = DeviceCopier::software(&SoftwareDevice::new(1 << 20)?, DeviceConfig::default())?;
    /// let layout = BlockLayout::new(2, 1, 4, BlockSize::DEFAULT, DType::F32)?;
    /// let (worker, events) = (WorkerId::new(InstanceId(1)), Box::new(|_event| {}));
    /// let pinned = BlockMemory::Pinned(copier.clone());
    /// let config = ManagerConfig::new(layout.clone(), 16).with_memory(pinned);
    /// let host = BlockManager::new(config, worker, events)?;
    /// let below = TiersConfig::default().with_tier(TierConfig::host(host)).with_queue_blocks(4);
    /// let memory = BlockMemory::Device(copier);
    /// let config = ManagerConfig::new(layout.clone(), 4).with_memory(memory).with_tiers(below);
    /// let device = BlockManager::above(config)?;
    ///
    /// let prompt: Vec<u32> = (0..16).collect();
    /// let sequence = TokenSequence::new(&CacheNamespace::default(), BlockSize::DEFAULT, &prompt);
    /// let block = device.allocate(1)?.remove(0);
    /// let (block, _) = block.upload(vec![42; layout.block_bytes()]).await?;
    /// drop(device.register(block.complete(sequence.keys()[0].clone())));
    /// // All of the device's memory is wanted: the block goes down, and comes up again.
    /// drop(device.reserve(4).await?);
    /// let found = Vec::from(device.acquire(sequence.keys()).await.blocks).remove(0);
    /// println!("at {:#x} of the device", found.device().expect("a block of it").address());
    /// assert_eq!(found.download(vec![0; layout.block_bytes()]).await?[0], 42);
    /// # device.shutdown(std::time::Duration::from_secs(5)).await?;
    /// # Ok(())
    /// # }
    /// ```
    pub fn above(config: ManagerConfig) -> Result<Self> {
        let Some(host) = config.tiers.host() else {
            return Err(Error::invalid("a block pool above no tier of host memory"));
        };
        let [theirs, ours] = [host.layout(), &config.layout].map(RankLayout::fingerprint);
        if theirs != ours {
            let message = format!("blocks of layout {ours:016x} above those of {theirs:016x}");
            return Err(Error::invalid(message));
        }
        let publisher = Arc::clone(host.pool.publisher());
        if publisher.set_shared(true) {
            let message = "a block pool of host memory below a second one of device memory";
            return Err(Error::new(ErrorKind::Conflict, message));
        }
        let built = Self::build(config, Arc::clone(&publisher));
        if built.is_err() {
            publisher.set_shared(false);
        }
        built
    }
}
