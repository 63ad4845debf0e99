use super::queue::{Nodes, Queue};
use super::{EntryId, Eviction, Use};

/// Evicts the leaf that was used longest ago.
///
/// Exact: a block that becomes a leaf late stands where its last use puts it. A rank is the time of
/// the victim's last use, so instances that share a clock evict as one does.
#[derive(Debug, Default)]
pub struct Lru {
    nodes: Nodes,
    queue: Queue,
}

impl Eviction for Lru {
    fn insert(&mut self, block: EntryId, usage: Use) {
        self.queue.insert(&mut self.nodes, block, usage.last_use);
    }

    fn remove(&mut self, block: EntryId) {
        self.queue.remove(&mut self.nodes, block);
    }

    fn victim(&mut self) -> Option<EntryId> {
        self.queue.pop(&mut self.nodes).map(|(block, _)| block)
    }

    fn rank(&self) -> Option<u64> {
        self.queue.first(&self.nodes).map(|(_, last_use)| last_use)
    }
}
