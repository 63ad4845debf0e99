use std::fmt;
use std::ops::Index;
use std::sync::Arc;

use dynamo_transfer::SlotRun;

use super::RegisteredBlock;
use crate::evict::RetentionPriority;
use crate::identity::BlockIdentity;
use crate::pool::{Home, Place, Pool};

/// Shared blocks of a sequence, first block first: what one [`RegisteredBlock`] each is, in one guard.
///
/// The last block keeps those before it, so a run costs about as much to take and to drop as a single
/// block does. `Vec<RegisteredBlock>` is made of it where each block is to go its own way.
#[derive(Default, Clone)]
pub struct BlockRun {
    first: Option<Part>,
    /// Behind the first one: rarely any, for blocks of one sequence follow each other.
    others: Vec<Part>,
}

/// Blocks of which each follows the one before.
#[derive(Clone)]
struct Part {
    pool: Arc<Pool>,
    last: Place,
    /// `None` only while being dropped.
    slots: Option<SlotRun<Home>>,
}

impl BlockRun {
    pub(crate) fn push(&mut self, pool: &Arc<Pool>, last: Place, slots: SlotRun<Home>) {
        self.push_part(Part { pool: Arc::clone(pool), last, slots: Some(slots) });
    }

    fn push_part(&mut self, mut part: Part) {
        let last = self.others.last_mut().or(self.first.as_mut());
        if let Some(last) = last {
            match last.append(part) {
                Ok(()) => return,
                Err(other) => part = other,
            }
        }
        match self.first {
            None => self.first = Some(part),
            Some(_) => self.others.push(part),
        }
    }

    /// Returns how many blocks there are.
    pub fn len(&self) -> usize {
        self.parts().map(|part| part.slots().len()).sum()
    }

    /// Tells whether there are none.
    pub fn is_empty(&self) -> bool {
        self.first.is_none()
    }

    /// Returns the bytes of a block, if there is one.
    pub fn get(&self, index: usize) -> Option<&[u8]> {
        let (slots, at) = self.slot(index)?;
        slots.get(at)
    }

    /// Returns where a block is: the slots of its part, and its number among those.
    pub(super) fn slot(&self, mut index: usize) -> Option<(&SlotRun<Home>, usize)> {
        for part in self.parts() {
            let slots = part.slots();
            if index < slots.len() {
                return Some((slots, index));
            }
            index -= slots.len();
        }
        None
    }

    /// Returns the bytes of each block.
    pub fn iter(&self) -> impl Iterator<Item = &[u8]> {
        self.parts().flat_map(|part| (0..part.slots().len()).map(|at| &part.slots()[at]))
    }

    /// Returns which blocks they are.
    pub fn identities(&self) -> Vec<BlockIdentity> {
        let names = self.parts().flat_map(Part::names);
        names.map(|(_, identity)| identity).collect()
    }

    /// Has its blocks kept as long as `priority` says when nobody holds them any more.
    ///
    /// A block of it that was given another priority before, by whomever, has this one now.
    pub fn set_priority(&self, priority: RetentionPriority) {
        let set = |part: &Part| part.pool.prioritize(part.last, part.slots().len(), priority);
        self.parts().for_each(set);
    }

    /// Appends blocks.
    pub fn append(&mut self, blocks: Self) {
        let Self { first, others } = blocks;
        first.into_iter().chain(others).for_each(|part| self.push_part(part));
    }

    fn parts(&self) -> impl Iterator<Item = &Part> {
        self.first.iter().chain(&self.others)
    }
}

impl Part {
    fn slots(&self) -> &SlotRun<Home> {
        self.slots.as_ref().expect("the memory is given up only in drop")
    }

    fn names(&self) -> Vec<(Place, BlockIdentity)> {
        self.pool.names(self.last, self.slots().len())
    }

    /// Takes over blocks that follow the last one; else gives them back.
    fn append(&mut self, mut next: Self) -> Result<(), Self> {
        let (Some(slots), Some(more)) = (&mut self.slots, next.slots.take()) else { return Ok(()) };
        match slots.append(more) {
            Ok(()) => self.last = next.last,
            Err(more) => {
                next.slots = Some(more);
                return Err(next);
            }
        }
        Ok(())
    }

    fn blocks(&self) -> impl Iterator<Item = RegisteredBlock> {
        let names = self.names().into_iter().enumerate();
        names.filter_map(|(at, (place, identity))| {
            Some(RegisteredBlock::new(&self.pool, place, self.slots().hold(at)?, identity))
        })
    }
}

impl Drop for Part {
    fn drop(&mut self) {
        if let Some(slots) = self.slots.take() {
            drop(slots);
            self.pool.settle(self.last);
        }
    }
}

impl Index<usize> for BlockRun {
    type Output = [u8];

    fn index(&self, index: usize) -> &[u8] {
        self.get(index).expect("an index of a block of the run")
    }
}

impl From<RegisteredBlock> for BlockRun {
    fn from(block: RegisteredBlock) -> Self {
        let (pool, last, slots) = block.as_run();
        let first = Part { pool: Arc::clone(pool), last, slots: Some(slots) };
        Self { first: Some(first), others: Vec::new() }
    }
}

impl From<BlockRun> for Vec<RegisteredBlock> {
    fn from(run: BlockRun) -> Self {
        run.parts().flat_map(Part::blocks).collect()
    }
}

impl IntoIterator for BlockRun {
    type Item = RegisteredBlock;
    type IntoIter = std::vec::IntoIter<RegisteredBlock>;

    fn into_iter(self) -> Self::IntoIter {
        Vec::from(self).into_iter()
    }
}

impl fmt::Debug for BlockRun {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list().entries(self.identities()).finish()
    }
}
