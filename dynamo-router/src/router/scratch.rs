use std::sync::{Mutex, TryLockError};

use crate::choose::Columns;
use crate::index::Matches;
use crate::workers::Positions;

/// What a choice needs besides what it reads.
#[derive(Debug, Default)]
pub(super) struct Scratch {
    pub(super) matches: Matches,
    /// For what was sent where.
    pub(super) sent: Matches,
    pub(super) columns: Columns,
    /// Whom a request should avoid.
    pub(super) avoided: Positions,
}

/// Scratches for as many threads as may choose at once, so that a choice allocates nothing.
///
/// A thread finds the one again that it had before, which is in its core's cache, by where its stack
/// is.
#[derive(Debug)]
pub(super) struct Scratches(Box<[Place]>);

/// A line of the cache of its own: threads do not disturb each other.
#[derive(Debug, Default)]
#[repr(align(128))]
struct Place(Mutex<Scratch>);

impl Scratches {
    /// Lends a scratch; a new one if more threads choose at once than there are places.
    pub(super) fn lend<R>(&self, choose: impl FnOnce(&mut Scratch) -> R) -> R {
        let here = 0u8;
        let region = std::ptr::from_ref(&here).addr() / STACK_REGION_BYTES;
        // The golden ratio's bits: neighbouring stacks are places apart.
        let first = region.wrapping_mul(0x9e37_79b9) >> 8;
        for turn in 0..self.0.len() {
            match self.0[(first + turn) % self.0.len()].0.try_lock() {
                Ok(mut scratch) => return choose(&mut scratch),
                Err(TryLockError::Poisoned(poisoned)) => return choose(&mut poisoned.into_inner()),
                Err(TryLockError::WouldBlock) => {}
            }
        }
        choose(&mut Scratch::default())
    }
}

impl Default for Scratches {
    fn default() -> Self {
        Self((0..PLACES).map(|_| Place::default()).collect())
    }
}

/// Threads that choose at the same instant without allocating: one per core of a large machine.
const PLACES: usize = 128;
/// Less than a thread's stack, more than a choice's callers take of it.
const STACK_REGION_BYTES: usize = 256 * 1024;
