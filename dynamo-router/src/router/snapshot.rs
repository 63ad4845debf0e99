//! What a router knows of caches as bytes, for the next one in its place.
//!
//! Words of 64 bits, the lowest byte first:
//!
//! ```text
//! magic, version
//! number of workers
//! worker: instance, rank
//!         the epoch and the number before which all its events were let through
//!         1 if it may have held more then than the index says, or 0
//! the index just then (`PrefixIndex::snapshot`)
//! checksum of all words before
//! ```

use std::collections::BTreeMap;
use std::sync::Arc;

use dynamo_core::protocol::{InstanceId, KvCursor, WorkerId};
use dynamo_core::time::Clock;
use dynamo_core::{Error, Result};

use super::{KvRouter, RouterConfig};
use crate::events::{Intake, Reached};
use crate::index::{SnapshotError, Words, seal};
use crate::workers::{Common, Members};

impl KvRouter {
    /// Writes down what workers have said that they hold, and how far each was heard, for
    /// [`restore`](Self::restore).
    ///
    /// Events wait meanwhile, choices do not. Neither load, speed and sessions are in it, nor what
    /// workers are only expected to hold ([`PrefixSource::Decisions`](crate::PrefixSource)).
    pub fn snapshot(&self) -> Vec<u8> {
        let (workers, index) = self.intake().snapshot();
        write(&workers, &index)
    }

    /// Creates a router that knows what the one knew that wrote `bytes` ([`snapshot`](Self::snapshot)),
    /// and chooses by it before it hears of anybody.
    ///
    /// Events go on from there. Behind a gap, and in another epoch of the worker, all is as it would
    /// have been without the restart: so who numbers the events of an engine for itself
    /// ([`vllm`](crate::events)) takes a larger epoch in each of its lives. An
    /// [`EventFeed`](crate::EventFeed) with snapshots asks all workers when it starts, silent ones
    /// too, and those that have said nothing meanwhile have little to answer. Who is not listed
    /// within ten seconds is forgotten; for whom there is no room is left out.
    ///
    /// Fails with [`InvalidArgument`](dynamo_core::ErrorKind::InvalidArgument), which names what is
    /// wrong, if `bytes` are damaged, not a snapshot of a router, of another version, or too large for
    /// [`RouterConfig::index`].
    ///
    /// # Examples
    /// ```
    /// use std::sync::Arc;
    ///
    /// use dynamo_core::protocol::{
    ///     InstanceId, KvChange, KvEvent, LocalHash, SequenceHash, StoredBlock, Tier, WorkerId,
    /// };
    /// use dynamo_core::time::SystemClock;
    /// use dynamo_router::{KvRouter, RouterConfig};
    ///
    /// # fn main() -> dynamo_core::Result<()> {
    /// let router = KvRouter::new(RouterConfig::default(), Arc::new(SystemClock));
    /// let worker = WorkerId::new(InstanceId(1));
    /// let blocks = vec![StoredBlock { sequence: SequenceHash(1), local: LocalHash(1) }];
    /// let change = KvChange::BlockStored { parent: None, blocks, tier: Tier::Device };
    /// router.apply(&KvEvent { worker, epoch: 7, seq: 0, change });
    /// let bytes = router.snapshot();
    ///
    /// let next = KvRouter::restore(RouterConfig::default(), Arc::new(SystemClock), &bytes)?;
    /// assert_eq!(next.stats().indexed_blocks, 1);
    /// next.apply(&KvEvent { worker, epoch: 7, seq: 1, change: KvChange::AllBlocksCleared });
    /// assert_eq!(next.event_stats().gaps_total, 0);
    /// # Ok(())
    /// # }
    /// ```
    pub fn restore(mut config: RouterConfig, clock: Arc<dyn Clock>, bytes: &[u8]) -> Result<Self> {
        config.bound();
        let common = Common::new(clock, &config);
        let mut members = Members::new(Arc::clone(&common));
        let refused = |what: &str, error: SnapshotError| {
            Error::invalid(format!("{what}: {error}")).with_source(error)
        };
        let (workers, index) = read(bytes).map_err(|error| refused("router's snapshot", error))?;
        let seat = |worker| members.hear_of(worker);
        let intake = Intake::resumed(config.index, &workers, index, seat)
            .map_err(|error| refused("index in a router's snapshot", error))?;
        Ok(Self::of(&config, common, members, intake))
    }
}

pub(super) fn write(workers: &BTreeMap<WorkerId, Reached>, index: &[u8]) -> Vec<u8> {
    let words = [MAGIC, VERSION, workers.len() as u64];
    let each = workers.iter().flat_map(|(worker, Reached { cursor, is_partial })| {
        let (instance, rank) = (worker.instance.0, u64::from(worker.rank));
        [instance, rank, cursor.epoch, cursor.next, u64::from(*is_partial)]
    });
    let mut bytes: Vec<u8> = words.into_iter().chain(each).flat_map(u64::to_le_bytes).collect();
    bytes.extend(index);
    seal(bytes)
}

/// Returns how far each worker was heard, and the bytes of the index.
fn read(bytes: &[u8]) -> Result<(BTreeMap<WorkerId, Reached>, &[u8]), SnapshotError> {
    let mut words = Words::check(bytes, MAGIC, VERSION)?;
    let mut workers = BTreeMap::new();
    for _ in 0..words.next()? {
        let instance = InstanceId(words.next()?);
        let rank = u32::try_from(words.next()?).map_err(|_| SnapshotError::Damaged("rank"))?;
        let cursor = KvCursor { epoch: words.next()?, next: words.next()? };
        let is_partial = match words.next()? {
            0 => false,
            1 => true,
            _ => return Err(SnapshotError::Damaged("mark of who is known in part")),
        };
        let reached = Reached { cursor, is_partial };
        if workers.insert(WorkerId { instance, rank }, reached).is_some() {
            return Err(SnapshotError::Damaged("worker that is there twice"));
        }
    }
    Ok((workers, words.rest()))
}

const MAGIC: u64 = u64::from_le_bytes(*b"DYNROUTR");
const VERSION: u64 = 1;
