use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use crate::engine::Context;
use crate::error::{Error, ErrorKind, Result};

/// The requests that an instance is serving: bounded, countable, killable.
#[derive(Debug)]
pub(crate) struct Inflight {
    state: Mutex<State>,
    count: watch::Sender<usize>,
    limit: usize,
    /// Fires when the instance ends what is still running.
    gone: CancellationToken,
}

#[derive(Debug, Default)]
struct State {
    contexts: HashMap<u64, Context>,
    next_key: u64,
    closed: bool,
}

/// Counts one request; lives in its stream.
#[derive(Debug)]
pub(super) struct InflightGuard {
    inflight: Arc<Inflight>,
    key: u64,
}

impl Inflight {
    pub(super) fn new(limit: usize) -> Self {
        let gone = CancellationToken::new();
        Self { state: Mutex::default(), count: watch::Sender::new(0), limit, gone }
    }

    /// Admits a request, or says why not; nothing has started in that case.
    pub(super) fn admit(self: &Arc<Self>, ctx: &Context) -> Result<InflightGuard> {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        if state.closed {
            return Err(Error::new(ErrorKind::Unavailable, "instance is draining").unprocessed());
        }
        if state.contexts.len() >= self.limit {
            let message = format!("instance serves {} requests, its limit", self.limit);
            return Err(Error::new(ErrorKind::Overloaded, message).unprocessed());
        }
        let key = state.next_key;
        state.next_key += 1;
        state.contexts.insert(key, ctx.clone());
        self.count.send_replace(state.contexts.len());
        Ok(InflightGuard { inflight: Arc::clone(self), key })
    }

    /// Refuses further requests.
    pub(super) fn close(&self) {
        self.state.lock().unwrap_or_else(PoisonError::into_inner).closed = true;
    }

    /// Fires when the instance ends what is still running: its requests did not hang up.
    pub(super) fn gone(&self) -> &CancellationToken {
        &self.gone
    }

    /// Ends what is running and returns how many requests that were.
    pub(super) fn kill_all(&self) -> usize {
        let state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        let contexts: Vec<_> = state.contexts.values().cloned().collect();
        // A kill wakes tasks that may drop their guard at once: not under the lock.
        drop(state);
        // Streams learn why before their work is killed.
        self.gone.cancel();
        contexts.iter().for_each(Context::kill);
        contexts.len()
    }

    pub(super) fn count(&self) -> usize {
        *self.count.borrow()
    }

    /// Completes when nothing is running. Cancel safe.
    pub(super) async fn idle(&self) {
        // The sender lives in self, so the channel cannot be closed here.
        let _ = self.count.subscribe().wait_for(|count| *count == 0).await;
    }
}

impl Drop for InflightGuard {
    fn drop(&mut self) {
        let mut state = self.inflight.state.lock().unwrap_or_else(PoisonError::into_inner);
        let context = state.contexts.remove(&self.key);
        self.inflight.count.send_replace(state.contexts.len());
        drop(state);
        drop(context);
    }
}
