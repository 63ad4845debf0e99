//! The cache of one worker: what was used longest ago goes first.

use std::collections::{HashMap, VecDeque};
use std::hash::{BuildHasherDefault, Hasher};

use dynamo_core::protocol::SequenceHash;

#[derive(Default)]
pub struct Cache {
    /// When each block was used last.
    used: HashMap<SequenceHash, u64, BuildHasherDefault<AsItIs>>,
    /// Uses in the order of time; those that are not a block's last one count for nothing.
    uses: VecDeque<(SequenceHash, u64)>,
    clock: u64,
}

impl Cache {
    pub fn len(&self) -> usize {
        self.used.len()
    }

    pub fn contains(&self, hash: SequenceHash) -> bool {
        self.used.contains_key(&hash)
    }

    /// Holds all blocks of a prompt; the last one counts as used first, so that leaves go first.
    pub fn touch(&mut self, prompt: &[SequenceHash]) {
        for &hash in prompt.iter().rev() {
            self.clock += 1;
            self.used.insert(hash, self.clock);
            self.uses.push_back((hash, self.clock));
        }
    }

    /// Lets go of the block that was used longest ago.
    pub fn evict(&mut self) -> Option<SequenceHash> {
        loop {
            let (hash, at) = self.uses.pop_front()?;
            if self.used.get(&hash) == Some(&at) {
                self.used.remove(&hash);
                return Some(hash);
            }
        }
    }
}

/// A hash needs no hashing.
#[derive(Default)]
pub struct AsItIs(u64);

impl Hasher for AsItIs {
    fn finish(&self) -> u64 {
        self.0
    }

    fn write(&mut self, bytes: &[u8]) {
        bytes.iter().for_each(|byte| self.0 = self.0.rotate_left(8) ^ u64::from(*byte));
    }

    fn write_u64(&mut self, hash: u64) {
        self.0 ^= hash;
    }

    fn write_usize(&mut self, number: usize) {
        self.0 ^= (number as u64).rotate_left(32);
    }
}
