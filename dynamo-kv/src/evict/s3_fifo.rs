use super::ghosts::Ghosts;
use super::queue::{Nodes, Queue};
use super::{EntryId, Eviction, Use};

/// Evicts what was never found again before what was: a long scan does not drive out what is shared.
///
/// S3-FIFO (Yang, Zhang, Qiu, Yue, Vigfusson: "FIFO queues are all you need for cache eviction",
/// SOSP 2023): a *small* queue for what is new, a *main* queue for what was used since, and *ghosts*,
/// hashes of what left the small queue for good, which enter the main queue when they come back. The
/// small queue gives the victim while it has a tenth of all; else the main queue does, where what was
/// used has up to three further chances.
///
/// That algorithm sees every block all the time. This one sees leaves, from when they are offered
/// until they are taken back, which makes these differences:
/// - A block that is used leaves and is offered again, so its queue is chosen then and not when its
///   turn comes: the main queue if it was found twice or is a ghost.
/// - Queues are ordered by the last use. For blocks never found again this is the order in which they
///   came; and what becomes a leaf late, since all that followed it went, is as old as it is and not
///   as new as a leaf.
/// - All sizes are counted in leaves, and a block becomes a ghost as a leaf.
///
/// The rank is the last use of the block whose turn comes, be it given another chance or not.
#[derive(Debug, Default)]
pub struct S3Fifo {
    nodes: Nodes,
    small: Queue,
    main: Queue,
    ghosts: Ghosts,
    /// What each block is known by once it is a ghost.
    hashes: Vec<u32>,
    /// Where each block stands: [`SMALL`], or in the main queue with that many chances left.
    chances: Vec<u8>,
    /// The latest use so far.
    now: u64,
}

/// Of so many leaves one may be in the small queue: the share of 10 % that the paper gives it.
const SMALL_SHARE: usize = 10;

/// How often a block is found before it enters the main queue, as in the paper: more than once.
const FOUND_MIN: u32 = 2;

/// How many chances a block has in the main queue: the paper counts uses in two bits.
const CHANCES_MAX: u8 = 3;

/// In place of chances: it stands in the small queue.
const SMALL: u8 = u8::MAX;

impl S3Fifo {
    fn reach(&mut self, block: EntryId) {
        let count = block.index() + 1;
        if count > self.hashes.len() {
            self.hashes.resize(count, 0);
            self.chances.resize(count, 0);
            self.ghosts.reach(count);
        }
    }

    fn is_small_next(&self) -> bool {
        let small = self.small.len();
        self.main.len() == 0 || small * SMALL_SHARE >= small + self.main.len()
    }
}

impl Eviction for S3Fifo {
    fn insert(&mut self, block: EntryId, usage: Use) {
        self.reach(block);
        self.now = self.now.max(usage.last_use);
        let hash = low_half(usage.hash);
        self.hashes[block.index()] = hash;
        let is_back = self.ghosts.take(hash);
        let (queue, chances) = if usage.uses >= FOUND_MIN || is_back {
            let chances = u8::try_from(usage.uses).map_or(CHANCES_MAX, |n| n.min(CHANCES_MAX));
            (&mut self.main, chances)
        } else {
            (&mut self.small, SMALL)
        };
        self.chances[block.index()] = chances;
        queue.insert(&mut self.nodes, block, usage.last_use);
    }

    fn remove(&mut self, block: EntryId) {
        let is_small = self.chances.get(block.index()).is_some_and(|chances| *chances == SMALL);
        let queue = if is_small { &mut self.small } else { &mut self.main };
        queue.remove(&mut self.nodes, block);
    }

    fn victim(&mut self) -> Option<EntryId> {
        if self.is_small_next() {
            let (block, _) = self.small.pop(&mut self.nodes)?;
            self.ghosts.add(self.hashes[block.index()]);
            return Some(block);
        }
        // Ends: each turn takes a chance of a block, and nothing gives it one meanwhile.
        loop {
            let (block, _) = self.main.pop(&mut self.nodes)?;
            let chances = &mut self.chances[block.index()];
            let Some(left) = chances.checked_sub(1) else { return Some(block) };
            *chances = left;
            self.main.insert(&mut self.nodes, block, self.now);
        }
    }

    fn rank(&self) -> Option<u64> {
        let queue = if self.is_small_next() { &self.small } else { &self.main };
        queue.first(&self.nodes).map(|(_, last_use)| last_use)
    }
}

fn low_half(hash: u64) -> u32 {
    let [.., a, b, c, d] = hash.to_be_bytes();
    u32::from_be_bytes([a, b, c, d])
}
