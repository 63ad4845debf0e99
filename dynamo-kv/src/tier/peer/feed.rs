//! What changes at an owner, for those that watch.

use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use dynamo_core::protocol::{KvChange, Tier};
use dynamo_core::{Error, ErrorKind, Result};
use futures::stream::{self, Stream};
use tokio::sync::mpsc;

use super::message::{Answer, Change, PART_BLOCKS, Told};
use crate::identity::BlockKey;
use crate::random::random;

/// Numbers the changes of one owner, and passes them on.
pub(super) struct Feed {
    /// The owner's life: a number that no other has.
    epoch: u64,
    watchers_max: usize,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    /// The number of the next change.
    seq: u64,
    /// Those that have not fallen behind.
    watchers: Vec<mpsc::Sender<Told>>,
    is_closed: bool,
}

/// What one watcher is told from `seq` on.
pub(super) struct Watch {
    pub(super) epoch: u64,
    pub(super) seq: u64,
    changes: mpsc::Receiver<Told>,
}

impl Feed {
    pub(super) fn new(watchers_max: usize) -> Result<Self> {
        let epoch = u64::from_le_bytes(random()?);
        Ok(Self { epoch, watchers_max, state: Mutex::default() })
    }

    /// Passes a change on, in parts; who has fallen behind is told nothing any more. Called under the
    /// locks of a manager.
    pub(super) fn publish(&self, change: &KvChange, keys: &[BlockKey]) {
        let mut state = self.lock();
        let State { seq, watchers, .. } = &mut *state;
        let mut tell = |change: Change| {
            let told = Told::Changed { seq: *seq, change };
            *seq += 1;
            watchers.retain(|watcher| watcher.try_send(told.clone()).is_ok());
        };
        match change {
            // Of a pool above this one: what it has cannot be lent.
            KvChange::BlockStored { tier: Tier::Device, .. }
            | KvChange::BlockRemoved { tier: Tier::Device, .. } => {}
            KvChange::BlockStored { tier, .. } => {
                keys.chunks(PART_BLOCKS)
                    .for_each(|keys| tell(Change::Stored(keys.to_vec(), *tier)));
            }
            KvChange::BlockRemoved { sequence_hashes, tier } => sequence_hashes
                .chunks(PART_BLOCKS)
                .for_each(|sequences| tell(Change::Removed(sequences.to_vec(), *tier))),
            _ => tell(Change::Cleared),
        }
    }

    /// Begins to tell one more.
    ///
    /// Fails with [`Overloaded`](ErrorKind::Overloaded) if there are too many, and with
    /// [`Closed`](ErrorKind::Closed) after a shutdown.
    pub(super) fn watch(&self) -> Result<Watch> {
        let mut state = self.lock();
        if state.is_closed {
            return Err(Error::new(ErrorKind::Closed, "owner of blocks has shut down"));
        }
        state.watchers.retain(|watcher| !watcher.is_closed());
        if state.watchers.len() >= self.watchers_max {
            let message = format!("{} watch an owner of blocks", state.watchers.len());
            return Err(Error::new(ErrorKind::Overloaded, message).unprocessed());
        }
        let (sender, changes) = mpsc::channel(BEHIND_MAX);
        state.watchers.push(sender);
        Ok(Watch { epoch: self.epoch, seq: state.seq, changes })
    }

    /// Returns how many watch.
    pub(super) fn watchers(&self) -> usize {
        self.lock().watchers.iter().filter(|watcher| !watcher.is_closed()).count()
    }

    /// Ends what is told to anybody.
    pub(super) fn close(&self) {
        let mut state = self.lock();
        state.is_closed = true;
        state.watchers.clear();
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Watch {
    /// Returns what changes, and something at each `beat`; it fails once this one has fallen behind, or
    /// the owner has shut down.
    pub(super) fn answers(self, beat: Duration) -> impl Stream<Item = Result<Answer>> + Send {
        let next = move |changes: Option<mpsc::Receiver<Told>>| async move {
            let mut changes = changes?;
            match tokio::time::timeout(beat, changes.recv()).await {
                Ok(Some(told)) => Some((Ok(Answer(told)), Some(changes))),
                Err(_) => Some((Ok(Answer(Told::Quiet)), Some(changes))),
                Ok(None) => {
                    let error = Error::new(ErrorKind::Unavailable, "changes of blocks are lost");
                    Some((Err(error), None))
                }
            }
        };
        stream::unfold(Some(self.changes), next)
    }
}

/// Changes that wait for one watcher: each of a few hundred blocks at most.
const BEHIND_MAX: usize = 1024;
