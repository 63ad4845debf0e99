use std::fmt;
use std::ops::{Deref, DerefMut};

use dynamo_transfer::Slot;

use crate::evict::RetentionPriority;
use crate::identity::BlockKey;
use crate::pool::Home;

/// A block being written by one owner; dropping it frees the slot.
pub struct MutableBlock {
    /// `None` only after the memory has moved on to the next state.
    slot: Option<Slot<Home>>,
}

impl MutableBlock {
    pub(crate) fn new(slot: Slot<Home>) -> Self {
        Self { slot: Some(slot) }
    }

    /// Declares that every token of the block is written, and which block it is.
    pub fn complete(mut self, key: BlockKey) -> CompleteBlock {
        let slot = self.slot.take();
        slot.iter().for_each(|slot| Home::set_complete(slot, true));
        CompleteBlock { slot, key, priority: RetentionPriority::default() }
    }

    /// Declares that the first `tokens` tokens of the block are written and no more will be.
    pub fn into_partial(self, tokens: usize) -> PartialBlock {
        PartialBlock { block: self, tokens }
    }

    pub(crate) fn slot(&self) -> &Slot<Home> {
        self.slot.as_ref().expect("the memory moves on only with the block")
    }
}

impl Deref for MutableBlock {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        self.slot()
    }
}

impl DerefMut for MutableBlock {
    fn deref_mut(&mut self) -> &mut [u8] {
        self.slot.as_mut().expect("the memory moves on only with the block")
    }
}

impl AsRef<[u8]> for MutableBlock {
    fn as_ref(&self) -> &[u8] {
        self
    }
}

impl AsMut<[u8]> for MutableBlock {
    fn as_mut(&mut self) -> &mut [u8] {
        self
    }
}

impl Drop for MutableBlock {
    fn drop(&mut self) {
        if let Some(slot) = self.slot.take() {
            Home::free(slot);
        }
    }
}

impl fmt::Debug for MutableBlock {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("MutableBlock").finish_non_exhaustive()
    }
}

/// A block that is full and not shared yet; dropping it frees the slot.
pub struct CompleteBlock {
    slot: Option<Slot<Home>>,
    key: BlockKey,
    priority: RetentionPriority,
}

impl CompleteBlock {
    /// Returns which block it is.
    pub fn key(&self) -> &BlockKey {
        &self.key
    }

    /// Has it kept as long as `priority` says, once it is registered.
    #[must_use]
    pub fn with_priority(mut self, priority: RetentionPriority) -> Self {
        self.priority = priority;
        self
    }

    pub(crate) fn slot(&self) -> &Slot<Home> {
        self.slot.as_ref().expect("the memory moves on only with the block")
    }

    pub(crate) fn priority(&self) -> RetentionPriority {
        self.priority
    }

    /// Takes out the slot: dropping the block frees nothing then.
    pub(crate) fn take_slot(&mut self) -> Slot<Home> {
        let slot = self.slot.take().expect("the memory moves on only with the block");
        Home::set_complete(&slot, false);
        slot
    }
}

impl Drop for CompleteBlock {
    fn drop(&mut self) {
        if let Some(slot) = self.slot.take() {
            Home::set_complete(&slot, false);
            Home::free(slot);
        }
    }
}

impl fmt::Debug for CompleteBlock {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("CompleteBlock").field("key", &self.key).finish_non_exhaustive()
    }
}

/// The last block of a sequence, written in part; it cannot be registered, only handed over.
#[derive(Debug)]
pub struct PartialBlock {
    pub(super) block: MutableBlock,
    tokens: usize,
}

impl PartialBlock {
    /// Returns how many tokens are written.
    pub fn tokens(&self) -> usize {
        self.tokens
    }
}

impl AsRef<[u8]> for PartialBlock {
    fn as_ref(&self) -> &[u8] {
        &self.block
    }
}
