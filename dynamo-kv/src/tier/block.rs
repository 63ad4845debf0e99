//! Blocks on their way down and up.

use std::fmt;
use std::sync::Arc;

use dynamo_core::protocol;

use crate::below::{Leaving, Offered};
use crate::block::{CompleteBlock, DeviceBlock, MutableBlock, RegisteredBlock};
use crate::identity::{BlockIdentity, BlockKey};
use crate::tier::{Damage, Miss, MissReason};

/// A block on its way down: its memory stays as it is until the last clone of this is dropped.
#[derive(Clone)]
pub struct Outgoing(Memory);

#[derive(Clone)]
enum Memory {
    Held(RegisteredBlock),
    Offered(Arc<Offered>),
    Evicted(Arc<Leaving>),
}

impl Outgoing {
    pub(crate) fn offered(block: Arc<Offered>) -> Self {
        Self(Memory::Offered(block))
    }

    pub(crate) fn leaving(block: &Arc<Leaving>) -> Self {
        Self(Memory::Evicted(Arc::clone(block)))
    }

    /// Returns where it is in device memory; `None` if it is in host memory.
    pub(crate) fn device(&self) -> Option<DeviceBlock<'_>> {
        match &self.0 {
            Memory::Held(block) => block.device(),
            Memory::Offered(block) => block.device(),
            Memory::Evicted(block) => block.device(),
        }
    }
}

impl From<RegisteredBlock> for Outgoing {
    fn from(block: RegisteredBlock) -> Self {
        Self(Memory::Held(block))
    }
}

impl AsRef<[u8]> for Outgoing {
    fn as_ref(&self) -> &[u8] {
        match &self.0 {
            Memory::Held(block) => block,
            Memory::Offered(block) => (**block).as_ref(),
            Memory::Evicted(block) => (**block).as_ref(),
        }
    }
}

impl fmt::Debug for Outgoing {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Outgoing").finish_non_exhaustive()
    }
}

/// How a block came to be in a tier.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Stored {
    /// It was written.
    Written,
    /// It was there, or another store has written it at the same time.
    Present,
}

/// A block that was read and has its digest: [`verify`](Self::verify) alone makes one, unless it is
/// copied from memory that a block manager shares.
#[derive(Debug)]
pub struct Loaded<B> {
    key: BlockKey,
    target: B,
    /// Where it was, if that is not the tier that gives it.
    source: Option<protocol::Tier>,
}

impl<B> Loaded<B> {
    /// Returns which block it is.
    pub fn key(&self) -> BlockKey {
        self.key
    }

    /// Returns the memory that was filled.
    pub fn into_target(self) -> B {
        self.target
    }
}

impl<B: AsMut<[u8]>> Loaded<B> {
    /// Proves that a target was filled with the block that was stored with this [`digest`].
    ///
    /// Fails with [`Damage::Digest`] if it was not. It hashes the whole block.
    pub fn verify(key: BlockKey, expected: &[u8; 32], mut target: B) -> Result<Self, Miss<B>> {
        if digest(&key.identity, target.as_mut()) == *expected {
            return Ok(Self { key, target, source: None });
        }
        Err(Miss { reason: MissReason::Damaged(Damage::Digest), target: Some(target) })
    }
}

impl Loaded<MutableBlock> {
    /// Takes a target that was filled from a registered block, which `source` had.
    pub(crate) fn copied(key: BlockKey, target: MutableBlock, source: protocol::Tier) -> Self {
        Self { key, target, source: Some(source) }
    }

    /// Returns where it was, if that is not the tier that gives it.
    pub(crate) fn source(&self) -> Option<protocol::Tier> {
        self.source
    }

    /// Declares the block full: what was loaded is all of it.
    pub fn complete(self) -> CompleteBlock {
        self.target.complete(self.key)
    }

    /// Declares the block full that is asked for by `key`; `None` if it is another one.
    ///
    /// Its identity was proven: what else names it, whoever asks knows best.
    pub(crate) fn complete_as(self, key: &BlockKey) -> Option<CompleteBlock> {
        (self.key.identity == key.identity).then(|| self.target.complete(*key))
    }
}

/// Returns what proves a block's bytes: BLAKE3 of them, keyed with its identity, so that those of
/// another block fail.
pub fn digest(identity: &BlockIdentity, bytes: &[u8]) -> [u8; 32] {
    *blake3::keyed_hash(&identity.0, bytes).as_bytes()
}
