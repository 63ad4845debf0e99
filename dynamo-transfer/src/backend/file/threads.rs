use std::sync::{Mutex, PoisonError};
use std::thread::{Builder, JoinHandle};
use std::time::Duration;

use tokio_util::task::TaskTracker;

use crate::error::{Error, ErrorKind, Result};

/// The threads of an engine.
#[derive(Default)]
pub(super) struct Threads {
    /// Counts those that have not ended.
    running: TaskTracker,
    handles: Mutex<Vec<JoinHandle<()>>>,
}

impl Threads {
    pub(super) fn spawn(&self, run: impl FnOnce() + Send + 'static) -> Result<()> {
        let token = self.running.token();
        let spawned = Builder::new().name("dynamo-file".to_owned()).spawn(move || {
            let _token = token;
            run();
        });
        let handle = spawned.map_err(|error| {
            Error::new(ErrorKind::Overloaded, "starting a thread for files").with_source(error)
        })?;
        self.handles.lock().unwrap_or_else(PoisonError::into_inner).push(handle);
        Ok(())
    }

    /// Joins all, or fails with `DeadlineExceeded`: then they end when the kernel lets them.
    pub(super) async fn join(&self, within: Duration) -> Result<()> {
        self.running.close();
        if tokio::time::timeout(within, self.running.wait()).await.is_err() {
            let message = format!("{} threads still wait for a file", self.running.len());
            return Err(Error::new(ErrorKind::DeadlineExceeded, message));
        }
        let handles =
            std::mem::take(&mut *self.handles.lock().unwrap_or_else(PoisonError::into_inner));
        // They have nothing left to do but to end.
        let panicked = handles.into_iter().filter_map(|handle| handle.join().err()).count();
        if panicked > 0 {
            return Err(Error::new(
                ErrorKind::Internal,
                format!("{panicked} file threads panicked"),
            ));
        }
        Ok(())
    }
}
