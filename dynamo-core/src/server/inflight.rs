use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio_util::sync::CancellationToken;

use crate::engine::{Admission, Context, Permit};
use crate::error::Result;

/// The requests that an instance is serving: bounded, countable, killable.
#[derive(Debug)]
pub(crate) struct Inflight {
    admission: Admission,
    running: Mutex<Running>,
    /// Fires when the instance ends what is still running.
    gone: CancellationToken,
}

#[derive(Debug, Default)]
struct Running {
    contexts: HashMap<u64, Context>,
    next_key: u64,
}

/// Counts one request; lives in its stream.
#[derive(Debug)]
pub(super) struct InflightGuard {
    inflight: Arc<Inflight>,
    key: u64,
    _permit: Permit,
}

impl Inflight {
    pub(super) fn new(admission: Admission) -> Self {
        Self { admission, running: Mutex::default(), gone: CancellationToken::new() }
    }

    /// Admits a request, perhaps after a wait, or says why not; nothing has started in that case.
    pub(super) async fn admit(self: &Arc<Self>, ctx: &Context) -> Result<InflightGuard> {
        let permit = self.admission.admit(ctx).await?;
        let mut running = self.running();
        let key = running.next_key;
        running.next_key += 1;
        running.contexts.insert(key, ctx.clone());
        drop(running);
        Ok(InflightGuard { inflight: Arc::clone(self), key, _permit: permit })
    }

    /// Refuses further requests and those that wait.
    pub(super) fn close(&self) {
        self.admission.close();
    }

    /// Fires when the instance ends what is still running: its requests did not hang up.
    pub(super) fn gone(&self) -> &CancellationToken {
        &self.gone
    }

    /// Ends what is running and returns how many requests that were.
    pub(super) fn kill_all(&self) -> usize {
        // A kill wakes tasks that may drop their guard at once: not under the lock.
        let contexts: Vec<_> = self.running().contexts.values().cloned().collect();
        // Streams learn why before their work is killed.
        self.gone.cancel();
        contexts.iter().for_each(Context::kill);
        contexts.len()
    }

    pub(super) fn admission(&self) -> &Admission {
        &self.admission
    }

    fn running(&self) -> MutexGuard<'_, Running> {
        self.running.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for InflightGuard {
    fn drop(&mut self) {
        let context = self.inflight.running().contexts.remove(&self.key);
        drop(context);
    }
}
