//! What this process wants in etcd, and how far etcd is from it; no IO.

use std::collections::BTreeMap;
use std::sync::Mutex;

use tokio::sync::{Notify, oneshot};

use super::lock;
use crate::discovery::{Displacement, Instance};
use crate::error::{Error, ErrorKind, Result};

/// What should be in etcd, and what should not be there any more.
#[derive(Default)]
pub(super) struct Wanted {
    state: Mutex<State>,
    /// Wakes whoever brings etcd there.
    pub(super) changed: Notify,
}

#[derive(Default)]
struct State {
    instances: BTreeMap<String, Registered>,
    /// Values to be taken out, if they are there.
    removed: Vec<(String, Vec<u8>)>,
    registrations: u64,
}

struct Registered {
    /// Which registration this is: a later one of the same key is another.
    registration: u64,
    instance: Instance,
    put: Put,
    /// Told how the first publication went.
    waiter: Option<oneshot::Sender<Result<()>>>,
    displacement: Displacement,
}

/// Whether a value is in etcd, under the lease that holds.
enum Put {
    No,
    /// etcd was asked to put it there, and has not answered.
    Perhaps(Vec<u8>),
    Done(Vec<u8>),
}

impl Put {
    /// Returns what may be there.
    fn into_value(self) -> Option<Vec<u8>> {
        match self {
            Self::No => None,
            Self::Perhaps(value) | Self::Done(value) => Some(value),
        }
    }
}

impl State {
    /// Has `value` taken out, if it is there.
    fn take_out(&mut self, key: &str, value: Vec<u8>) {
        let gone = (key.to_owned(), value);
        if !self.removed.contains(&gone) {
            self.removed.push(gone);
        }
    }

    fn wanted(&mut self, key: &str, registration: u64) -> Option<&mut Registered> {
        self.instances.get_mut(key).filter(|known| known.registration == registration)
    }
}

impl Wanted {
    /// Wants an instance; returns the number of the registration, and what tells when it is lost
    /// and when it is done.
    pub(super) fn add(
        &self,
        key: &str,
        instance: Instance,
    ) -> Result<(u64, Displacement, oneshot::Receiver<Result<()>>)> {
        let mut state = lock(&self.state);
        let known = state.instances.get(key).map(|known| known.instance.incarnation);
        if known.is_some_and(|known| known >= instance.incarnation) {
            return Err(conflict(&instance));
        }
        state.registrations += 1;
        let registration = state.registrations;
        let (waiter, published) = oneshot::channel();
        let (later, displacement) = (instance.clone(), Displacement::default());
        let ours = Registered {
            registration,
            instance,
            put: Put::No,
            waiter: Some(waiter),
            displacement: displacement.clone(),
        };
        if let Some(earlier) = state.instances.insert(key.to_owned(), ours) {
            earlier.displacement.by_later(&later);
            // Whoever still waits for it is told as well.
            earlier.waiter.map(|waiter| waiter.send(Err(conflict(&earlier.instance))));
        }
        drop(state);
        self.changed.notify_one();
        Ok((registration, displacement, published))
    }

    /// Wants an instance no longer.
    pub(super) fn remove(&self, key: &str, registration: u64) {
        let mut state = lock(&self.state);
        if state.wanted(key, registration).is_some()
            && let Some(value) = state.instances.remove(key).and_then(|its| its.put.into_value())
        {
            state.take_out(key, value);
        }
        drop(state);
        self.changed.notify_one();
    }

    /// Notes that the lease is gone, and with it all that was published: it is published again as
    /// a later incarnation, so that nobody takes what is left of the old one for news.
    pub(super) fn lease_lost(&self) {
        let mut state = lock(&self.state);
        state.removed.clear();
        for known in state.instances.values_mut() {
            if std::mem::replace(&mut known.put, Put::No).into_value().is_some() {
                known.instance.incarnation += 1;
            }
        }
    }

    /// Notes which keys the lease has: one that is published and not there, because somebody has
    /// taken it out or over, is to be published again. Returns those that nobody wants there: they
    /// were asked for, and came about only when that was given up.
    pub(super) fn found(&self, keys: &[Vec<u8>]) -> Vec<Vec<u8>> {
        let mut state = lock(&self.state);
        for (key, known) in &mut state.instances {
            let is_there = || keys.iter().any(|found| found == key.as_bytes());
            if matches!(known.put, Put::Done(_)) && !is_there() {
                tracing::warn!(key, "an instance that is registered is not in etcd any more");
                known.put = Put::No;
            }
        }
        let is_known = |key: &[u8]| {
            let is_going = state.removed.iter().any(|(gone, _)| gone.as_bytes() == key);
            let is_wanted = |key: &str| state.instances.contains_key(key);
            is_going || std::str::from_utf8(key).is_ok_and(is_wanted)
        };
        keys.iter().filter(|key| !is_known(key)).cloned().collect()
    }

    /// Has a value taken out that was found and that nobody wants.
    pub(super) fn stray(&self, key: &str, value: &[u8]) {
        let mut state = lock(&self.state);
        if !state.instances.contains_key(key) {
            tracing::warn!(key, "an instance that has left is still in etcd");
            state.take_out(key, value.to_vec());
        }
    }

    /// Returns what is not published yet, and has nothing of an earlier one in its way.
    pub(super) fn unpublished(&self) -> Vec<(String, u64, Instance)> {
        let State { instances, removed, .. } = &*lock(&self.state);
        let missing = instances.iter().filter(|(key, known)| {
            !matches!(known.put, Put::Done(_)) && !removed.iter().any(|(gone, _)| gone == *key)
        });
        missing
            .map(|(key, known)| (key.clone(), known.registration, known.instance.clone()))
            .collect()
    }

    /// Notes that `value` may be in etcd from now on; not if nobody wants it there any more.
    pub(super) fn trying(&self, key: &str, registration: u64, value: &[u8]) -> bool {
        let mut state = lock(&self.state);
        let known = state.wanted(key, registration);
        known.map(|known| known.put = Put::Perhaps(value.to_vec())).is_some()
    }

    /// Notes that an instance is published, or that another one has its key.
    pub(super) fn settle(&self, key: &str, registration: u64, outcome: Result<Vec<u8>>) {
        let mut state = lock(&self.state);
        let Some(known) = state.wanted(key, registration) else {
            if let Ok(value) = outcome {
                state.take_out(key, value);
            }
            return;
        };
        match (known.waiter.take(), outcome) {
            (waiter, Ok(value)) => {
                known.put = Put::Done(value);
                // The registrant may have stopped to wait.
                waiter.map(|waiter| waiter.send(Ok(())));
            }
            (Some(waiter), Err(error)) => {
                state.instances.remove(key);
                let _ = waiter.send(Err(error));
            }
            (None, Err(error)) => {
                tracing::error!(%error, "instance lost its key in etcd to another one");
                known.displacement.by(&error);
                state.instances.remove(key);
            }
        }
    }

    /// Wants nothing any more.
    pub(super) fn remove_all(&self) {
        let mut state = lock(&self.state);
        for (key, known) in std::mem::take(&mut state.instances) {
            if let Some(value) = known.put.into_value() {
                state.take_out(&key, value);
            }
        }
    }

    pub(super) fn removed(&self) -> Vec<(String, Vec<u8>)> {
        lock(&self.state).removed.clone()
    }

    pub(super) fn forget_removed(&self, gone: &(String, Vec<u8>)) {
        lock(&self.state).removed.retain(|removed| removed != gone);
    }
}

pub(super) fn conflict(instance: &Instance) -> Error {
    Error::new(ErrorKind::Conflict, format!("{instance} is registered already"))
}
