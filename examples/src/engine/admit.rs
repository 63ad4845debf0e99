use std::sync::Arc;

use dynamo_core::{Error, ErrorKind, Result};
use dynamo_kv::TokenSequence;
use tokio::sync::OwnedSemaphorePermit;

use super::Inner;
use super::sequence::reusable;

impl Inner {
    /// Waits until there is room for another sequence; if it has to, what is below memory of the prompt of
    /// `prefix` comes up meanwhile.
    pub(super) async fn admit(
        &self,
        prefix: Option<&TokenSequence>,
    ) -> Result<OwnedSemaphorePermit> {
        if let Ok(permit) = Arc::clone(&self.compute).try_acquire_owned() {
            return Ok(permit);
        }
        if let Some(prefix) = prefix {
            // One that is refused is loaded when its turn comes.
            let _ = self.manager.prefetch(reusable(prefix).to_vec());
        }
        let permit = Arc::clone(&self.compute).acquire_owned().await;
        permit.map_err(|_| Error::new(ErrorKind::Closed, "worker has shut down"))
    }

    /// Runs `work` on a blocking thread.
    pub(super) async fn compute<T: Send + 'static>(
        &self,
        permit: OwnedSemaphorePermit,
        work: impl FnOnce() -> Result<T> + Send + 'static,
    ) -> Result<T> {
        let thread = self.tasks.spawn_blocking(move || {
            let result = work();
            drop(permit);
            result
        });
        thread.await.map_err(|error| Error::internal("computing thread").with_source(error))?
    }
}
