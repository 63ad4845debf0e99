use std::collections::BTreeMap;

use super::Eviction;
use crate::identity::BlockIdentity;

/// Evicts the leaf that was used longest ago.
#[derive(Debug, Default)]
pub struct Lru(BTreeMap<u64, BlockIdentity>);

impl Eviction for Lru {
    fn insert(&mut self, block: BlockIdentity, last_use: u64) {
        self.0.insert(last_use, block);
    }

    fn remove(&mut self, _: BlockIdentity, last_use: u64) {
        self.0.remove(&last_use);
    }

    fn victim(&mut self) -> Option<BlockIdentity> {
        self.0.pop_first().map(|(_, block)| block)
    }
}
