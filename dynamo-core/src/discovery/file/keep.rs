//! What this process has registered: brings the folder to what is wanted, and keeps it there.

use std::collections::{BTreeMap, VecDeque};
use std::sync::{Arc, Mutex};

use tokio::sync::oneshot;

use super::folder::{Folder, Held, Inode};
use super::lock;
use crate::discovery::{Displacement, Instance};
use crate::error::{Error, ErrorKind, Result};

/// What should be in the folder, by the name of its file.
#[derive(Default)]
pub(super) struct Wanted(Mutex<State>);

#[derive(Default)]
struct State {
    entries: BTreeMap<String, Registered>,
    registrations: u64,
    is_closed: bool,
}

struct Registered {
    /// Which registration this is: a later one of the same name is another.
    registration: u64,
    instance: Instance,
    /// Told how the first publication went.
    waiter: Option<oneshot::Sender<Result<()>>>,
    /// It was warned of that its file is missing.
    is_missing: bool,
    displacement: Displacement,
}

impl Wanted {
    /// Wants an instance; returns the number of the registration, and what tells when it is lost
    /// and when it is done.
    pub(super) fn add(
        &self,
        name: &str,
        instance: Instance,
    ) -> Result<(u64, Displacement, oneshot::Receiver<Result<()>>)> {
        let mut state = lock(&self.0);
        if state.is_closed {
            return Err(Error::new(ErrorKind::Closed, "discovery has shut down"));
        }
        let known = state.entries.get(name).map(|entry| entry.instance.incarnation);
        if known.is_some_and(|known| known >= instance.incarnation) {
            return Err(conflict(&instance));
        }
        state.registrations += 1;
        let registration = state.registrations;
        let (waiter, published) = oneshot::channel();
        let displacement = Displacement::default();
        let entry = Registered {
            registration,
            instance,
            waiter: Some(waiter),
            is_missing: false,
            displacement: displacement.clone(),
        };
        let later = entry.instance.clone();
        if let Some(earlier) = state.entries.insert(name.to_owned(), entry) {
            earlier.displacement.by_later(&later);
            // Whoever still waits for it is told as well.
            earlier.waiter.map(|waiter| waiter.send(Err(conflict(&earlier.instance))));
        }
        Ok((registration, displacement, published))
    }

    /// Wants an instance no longer.
    pub(super) fn remove(&self, name: &str, registration: u64) {
        let mut state = lock(&self.0);
        if state.entries.get(name).is_some_and(|entry| entry.registration == registration) {
            state.entries.remove(name);
        }
    }

    /// Wants nothing any more, for good.
    pub(super) fn close(&self) {
        let mut state = lock(&self.0);
        state.is_closed = true;
        state.entries.clear();
    }

    fn all(&self) -> BTreeMap<String, (u64, Instance)> {
        let state = lock(&self.0);
        let all = state.entries.iter();
        all.map(|(name, entry)| (name.clone(), (entry.registration, entry.instance.clone())))
            .collect()
    }

    /// Notes how a publication went: who waited for it hears of a failure, and gives up.
    fn settle(&self, name: &str, registration: u64, outcome: Result<()>) {
        let mut state = lock(&self.0);
        let Some(entry) = state.entries.get_mut(name) else { return };
        if entry.registration != registration {
            return;
        }
        let is_lost = outcome.as_ref().is_err_and(|error| error.kind() == ErrorKind::Conflict);
        match (entry.waiter.take(), outcome) {
            (Some(waiter), outcome) => {
                if outcome.is_err() {
                    state.entries.remove(name);
                }
                // The registrant may have stopped to wait.
                let _ = waiter.send(outcome);
            }
            (None, Err(error)) if is_lost => {
                tracing::error!(%error, "instance lost its file to another one");
                entry.displacement.by(&error);
                state.entries.remove(name);
            }
            // It is tried again.
            (None, Err(error)) => {
                if !std::mem::replace(&mut entry.is_missing, true) {
                    tracing::warn!(%error, name, "the file of an instance is missing");
                }
            }
            (None, Ok(())) => entry.is_missing = false,
        }
    }
}

fn conflict(instance: &Instance) -> Error {
    Error::new(ErrorKind::Conflict, format!("{instance} is registered already"))
}

/// Holds the files of this process; all its calls block.
pub(super) struct Keeper {
    folder: Folder,
    wanted: Arc<Wanted>,
    held: BTreeMap<String, Kept>,
    is_swept: bool,
}

struct Kept {
    registration: u64,
    incarnation: u64,
    held: Held,
    /// Files of the same registration that somebody has taken the name from: who still knows one
    /// sees by its lock that the instance lives.
    former: VecDeque<Held>,
}

impl Keeper {
    pub(super) fn new(folder: Folder, wanted: Arc<Wanted>) -> Self {
        Self { folder, wanted, held: BTreeMap::new(), is_swept: false }
    }

    pub(super) fn is_idle(&self) -> bool {
        self.held.is_empty()
    }

    /// Puts in what is missing, and takes out what is not wanted any more and what is `stale`.
    /// Tells whether it has to be called again soon: another process changes the folder.
    pub(super) fn keep(&mut self, stale: &mut BTreeMap<String, Inode>) -> bool {
        let wanted = self.wanted.all();
        self.held.retain(|name, kept| {
            let has_left = match wanted.get(name) {
                None => true,
                // Only who has left can be followed by no later one.
                Some((registration, instance)) => {
                    *registration != kept.registration && instance.incarnation <= kept.incarnation
                }
            };
            if has_left {
                // Whoever looks sees by this that it is gone; a child that has just been forked
                // may have the file too, so closing it is not enough.
                for held in kept.former.iter().chain([&kept.held]) {
                    let _ = held.file.unlock();
                }
                stale.insert(name.clone(), kept.held.inode);
            }
            !has_left
        });
        let is_due = |name: &String, registration: u64| {
            self.held.get(name).is_none_or(|kept| {
                kept.registration != registration
                    || self.folder.inode(name) != Some(kept.held.inode)
            })
        };
        let due: Vec<_> =
            wanted.into_iter().filter(|(name, (number, _))| is_due(name, *number)).collect();
        if due.is_empty() && stale.is_empty() {
            return false;
        }
        self.change(due, stale)
    }

    fn change(
        &mut self,
        due: Vec<(String, (u64, Instance))>,
        stale: &mut BTreeMap<String, Inode>,
    ) -> bool {
        let folder = self.folder.clone();
        let locked = match folder.try_lock() {
            Ok(Some(locked)) => locked,
            Ok(None) => return !due.is_empty(),
            Err(error) => {
                // Who may only look leaves it to others to clean up.
                stale.clear();
                let again = |error: &Error| Error::new(error.kind(), error.message());
                for (name, (registration, _)) in due {
                    self.wanted.settle(&name, registration, Err(again(&error)));
                }
                return false;
            }
        };
        if !std::mem::replace(&mut self.is_swept, true)
            && let Err(error) = locked.sweep()
        {
            tracing::warn!(%error, "left-overs stay");
        }
        for (name, (registration, instance)) in due {
            let published = locked.publish(&name, &instance);
            let outcome = published.map(|held| {
                stale.remove(&name);
                let mut former = VecDeque::new();
                if let Some(kept) = self.held.remove(&name)
                    && kept.registration == registration
                {
                    former = kept.former;
                    former.push_front(kept.held);
                    former.truncate(FORMER_MAX);
                }
                let incarnation = instance.incarnation;
                self.held.insert(name.clone(), Kept { registration, incarnation, held, former });
            });
            self.wanted.settle(&name, registration, outcome);
        }
        for (name, inode) in std::mem::take(stale) {
            if let Err(error) = locked.remove(&name, inode) {
                tracing::warn!(%error, name, "the file of a dead instance stays");
            }
        }
        false
    }
}

/// Beyond it somebody removes a file again and again, and who watches looks more often than that.
const FORMER_MAX: usize = 4;
