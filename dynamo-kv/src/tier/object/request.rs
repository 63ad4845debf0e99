use std::error::Error as StdError;
use std::future::Future;
use std::io;
use std::time::Duration;

use bytes::Bytes;
use dynamo_core::random::Random;
use dynamo_core::{Error, ErrorKind};
use futures::TryStreamExt;
use object_store::path::Path;
use object_store::{
    Error as ObjectError, ObjectMeta, ObjectStoreExt, PutMode, PutOptions, PutPayload,
};
use tokio::sync::SemaphorePermit;
use tokio::time::timeout;
use tokio_util::task::task_tracker::TaskTrackerToken;

use super::Inner;
use crate::identity::BlockIdentity;
use crate::tier::StoreError;

/// A place among the requests under way, for all attempts at one.
pub(super) struct Place<'a> {
    _permit: SemaphorePermit<'a>,
    _running: TaskTrackerToken,
}

/// Why a request did not succeed.
#[derive(Debug, thiserror::Error)]
pub(super) enum Failure {
    #[error("there is no such object")]
    Absent,
    #[error("the object is there already")]
    Exists,
    #[error("the store cannot do it")]
    Unsupported(#[source] ObjectError),
    #[error("the store has no room")]
    Full(#[source] ObjectError),
    #[error("the store failed")]
    Failed(#[source] ObjectError),
    #[error("no answer within {0:?}")]
    Overdue(Duration),
    #[error("the body ends after {0} bytes")]
    Short(usize),
    #[error("the tier has shut down")]
    Closed,
}

impl Failure {
    /// Tells whether another attempt may fare better.
    fn is_passing(&self) -> bool {
        matches!(
            self,
            Self::Overdue(_) | Self::Short(_) | Self::Failed(ObjectError::Generic { .. })
        )
    }
}

impl From<ObjectError> for Failure {
    fn from(error: ObjectError) -> Self {
        match error {
            ObjectError::NotFound { .. } => Self::Absent,
            ObjectError::AlreadyExists { .. } | ObjectError::Precondition { .. } => Self::Exists,
            ObjectError::NotSupported { .. } | ObjectError::NotImplemented { .. } => {
                Self::Unsupported(error)
            }
            error if is_full(&error) => Self::Full(error),
            error => Self::Failed(error),
        }
    }
}

impl From<Failure> for StoreError {
    fn from(failure: Failure) -> Self {
        match failure {
            Failure::Closed => Self::Closed,
            Failure::Full(_) => Self::StorageFull(Box::new(failure)),
            failure => Self::Io(Box::new(failure)),
        }
    }
}

impl From<Failure> for Error {
    fn from(failure: Failure) -> Self {
        let kind = match failure {
            Failure::Closed => ErrorKind::Closed,
            Failure::Overdue(_) => ErrorKind::DeadlineExceeded,
            Failure::Full(_) => ErrorKind::Overloaded,
            _ => ErrorKind::Unavailable,
        };
        Self::new(kind, "request to an object store").with_source(failure)
    }
}

/// Attempts at one request that are left.
pub(super) struct Attempts {
    left: u32,
    pause: Duration,
}

impl Attempts {
    /// Waits before the next attempt, or fails with what the last one came to.
    pub(super) async fn again(&mut self, failure: Failure) -> Result<(), Failure> {
        self.left = self.left.saturating_sub(1);
        if self.left == 0 || !failure.is_passing() {
            return Err(failure);
        }
        tokio::time::sleep(Random::unseeded().around(self.pause)).await;
        self.pause = self.pause.saturating_mul(2);
        Ok(())
    }
}

impl Inner {
    /// Waits for a place among the requests under way.
    pub(super) async fn place(&self) -> Result<Place<'_>, Failure> {
        let permit = self.room.acquire().await.map_err(|_| Failure::Closed)?;
        Ok(Place { _permit: permit, _running: self.tasks.token() })
    }

    pub(super) fn attempts(&self) -> Attempts {
        Attempts { left: self.config.attempts, pause: self.config.backoff }
    }

    /// Makes a request until it succeeds, fails for good, or was tried as often as it may.
    async fn request<T, F>(&self, attempt: impl Fn() -> F) -> Result<T, Failure>
    where
        F: Future<Output = object_store::Result<T>>,
    {
        let mut attempts = self.attempts();
        loop {
            match self.within(attempt()).await {
                Ok(done) => return Ok(done),
                Err(failure) => attempts.again(failure).await?,
            }
        }
    }

    /// Makes one attempt in the time that it may take.
    pub(super) async fn within<T>(
        &self,
        attempt: impl Future<Output = object_store::Result<T>>,
    ) -> Result<T, Failure> {
        let limit = self.config.request_timeout;
        match timeout(limit, attempt).await {
            Ok(done) => Ok(done?),
            Err(_) => Err(Failure::Overdue(limit)),
        }
    }

    /// Creates an object, or writes over the one that is there.
    pub(super) async fn put(
        &self,
        path: &Path,
        [header, block]: &[Bytes; 2],
        mode: &PutMode,
    ) -> Result<(), Failure> {
        let attempt = || {
            let payload = PutPayload::from_iter([header.clone(), block.clone()]);
            self.store.put_opts(path, payload, PutOptions::from(mode.clone()))
        };
        self.request(attempt).await.map(drop)
    }

    /// Tells whether there is an object of the right size.
    pub(super) async fn is_whole(&self, path: &Path) -> Result<bool, Failure> {
        match self.request(|| self.store.head(path)).await {
            Ok(meta) => Ok(self.is_sized(&meta)),
            Err(Failure::Absent) => Ok(false),
            Err(failure) => Err(failure),
        }
    }

    /// Tells whether an object has the size of all objects.
    pub(super) fn is_sized(&self, meta: &ObjectMeta) -> bool {
        meta.size == self.format.object_bytes()
    }

    /// Deletes a block's object, if there is one.
    pub(super) async fn delete(&self, identity: &BlockIdentity) -> Result<(), Failure> {
        let _deletion = Deletion::begin(self, Some(*identity));
        let path = self.format.path(identity);
        match self.request(|| self.store.delete(&path)).await {
            Err(Failure::Absent) => Ok(()),
            deleted => deleted,
        }
    }

    /// Deletes all objects of the tier, page by page.
    pub(super) async fn delete_all(&self) -> Result<(), Failure> {
        let _deletion = Deletion::begin(self, None);
        let mut attempts = self.attempts();
        loop {
            let listed = self.store.list(Some(self.format.root()));
            let paths = listed.map_ok(|meta| meta.location);
            let mut deleted = self.store.delete_stream(Box::pin(paths));
            let failure = loop {
                match self.within(deleted.try_next()).await {
                    Ok(None) => return Ok(()),
                    // Another process was faster.
                    Ok(Some(_)) | Err(Failure::Absent) => {}
                    Err(failure) => break failure,
                }
            };
            attempts.again(failure).await?;
        }
    }
}

/// A deletion under way, of a block or of all: what is seen meanwhile is not known when it ends, or is
/// given up.
struct Deletion<'a> {
    inner: &'a Inner,
    identity: Option<BlockIdentity>,
}

impl<'a> Deletion<'a> {
    fn begin(inner: &'a Inner, identity: Option<BlockIdentity>) -> Self {
        let deletion = Self { inner, identity };
        deletion.note();
        deletion
    }

    fn note(&self) {
        let mut index = self.inner.index();
        match &self.identity {
            Some(identity) => index.delete(identity),
            None => index.clear(),
        }
    }
}

impl Drop for Deletion<'_> {
    fn drop(&mut self) {
        self.note();
    }
}

/// Tells whether a filesystem, a quota or a limit is full.
fn is_full(error: &ObjectError) -> bool {
    let mut cause: Option<&(dyn StdError + 'static)> = Some(error);
    while let Some(error) = cause {
        let kind = error.downcast_ref::<io::Error>().map(io::Error::kind);
        if matches!(kind, Some(io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded)) {
            return true;
        }
        cause = error.source();
    }
    false
}
