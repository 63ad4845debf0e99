use super::hash::SequenceHash;
use super::kv_event::{KvChange, StoredBlock, Tier};
use super::worker::WorkerId;

/// How much of what a worker publishes is known: all events of one epoch before one number.
///
/// A larger cursor knows more: whoever has heard of a larger epoch knows that the smaller is over.
#[derive(
    Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, serde::Serialize, serde::Deserialize,
)]
pub struct KvCursor {
    /// The life of the publisher.
    pub epoch: u64,
    /// The number of the first event that is not known.
    pub next: u64,
}

/// Asks a worker for everything its caches hold, because events of its were lost.
///
/// The answer is a stream of [`SnapshotPage`]s, at least one; only one that is complete counts.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct SnapshotRequest {
    /// Whose caches.
    pub worker: WorkerId,
    /// What the asker knows, without a hole. If nothing has been published since, one page without
    /// blocks answers.
    pub known: Option<KvCursor>,
}

/// A part of what a worker's caches hold at one moment.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct SnapshotPage {
    /// Whose caches.
    pub worker: WorkerId,
    /// The moment: the snapshot stands for all events before; the same in all its pages.
    pub cursor: KvCursor,
    /// Blocks as [`KvChange::BlockStored`], in each tier that has them, parents before what follows
    /// them.
    pub stored: Vec<KvChange>,
}

impl SnapshotPage {
    /// Cuts what is stored at a moment into pages of at most 4,096 blocks, as they are taken: one at
    /// least, which says of what moment it is true that nothing is.
    ///
    /// Each block comes with the one before it and a tier that has it, in the order of
    /// [`stored`](Self::stored).
    pub fn cut(
        worker: WorkerId,
        cursor: KvCursor,
        blocks: impl IntoIterator<Item = (Option<SequenceHash>, StoredBlock, Tier), IntoIter: Send>,
    ) -> impl Iterator<Item = Self> + Send {
        cut(worker, cursor, blocks, PAGE_BLOCKS)
    }
}

fn cut(
    worker: WorkerId,
    cursor: KvCursor,
    blocks: impl IntoIterator<Item = (Option<SequenceHash>, StoredBlock, Tier), IntoIter: Send>,
    page_blocks: usize,
) -> impl Iterator<Item = SnapshotPage> + Send {
    let (mut blocks, mut is_first) = (blocks.into_iter().peekable(), true);
    std::iter::from_fn(move || {
        if !std::mem::take(&mut is_first) {
            blocks.peek()?;
        }
        let mut stored = Vec::new();
        for (parent, block, tier) in blocks.by_ref().take(page_blocks) {
            KvChange::push_stored(&mut stored, parent, &[block], tier);
        }
        Some(SnapshotPage { worker, cursor, stored })
    })
}

/// Some 100 KiB of a page that is encoded.
const PAGE_BLOCKS: usize = 4096;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::protocol::{InstanceId, LocalHash};

    fn block(hash: u64) -> StoredBlock {
        StoredBlock { sequence: SequenceHash(hash), local: LocalHash(hash) }
    }

    fn run(parent: Option<u64>, hashes: impl IntoIterator<Item = u64>, tier: Tier) -> KvChange {
        let (parent, blocks) = (parent.map(SequenceHash), hashes.into_iter().map(block).collect());
        KvChange::BlockStored { parent, blocks, tier }
    }

    fn pages(blocks: &[(Option<u64>, u64, Tier)]) -> Vec<Vec<KvChange>> {
        let cursor = KvCursor { epoch: 3, next: 7 };
        let blocks = blocks
            .iter()
            .map(|&(parent, hash, tier)| (parent.map(SequenceHash), block(hash), tier));
        let pages = cut(WorkerId::new(InstanceId(1)), cursor, blocks, 3);
        pages.inspect(|page| assert_eq!(page.cursor, cursor)).map(|page| page.stored).collect()
    }

    #[test]
    fn pages_are_bounded_and_blocks_that_follow_each_other_are_one_run() {
        use Tier::{Disk, Host};
        let blocks = [
            (None, 1, Host),
            (Some(1), 2, Host),
            (Some(2), 3, Host),
            (Some(3), 4, Host),
            (Some(4), 5, Disk),
            (Some(5), 6, Disk),
            (None, 7, Disk),
        ];
        let expected = vec![
            vec![run(None, [1, 2, 3], Host)],
            vec![run(Some(3), [4], Host), run(Some(4), [5, 6], Disk)],
            vec![run(None, [7], Disk)],
        ];
        assert_eq!(pages(&blocks), expected);
        assert_eq!(pages(&blocks[..3]), expected[..1]);
    }

    #[test]
    fn a_snapshot_of_nothing_is_one_page() {
        assert_eq!(pages(&[]), [vec![]]);
    }
}
