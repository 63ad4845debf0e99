use std::fmt;
use std::future::Future;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use super::batch::Method;
use crate::error::{Error, Result};

/// How a [`DeviceCopier`](super::DeviceCopier) is set up.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct DeviceConfig {
    /// Copies in flight; more are refused. One counts until it has passed and its future was awaited or
    /// dropped.
    pub copies_max: usize,
    /// The most time a copy is waited for.
    pub copy_deadline: Duration,
    /// How blocks are copied; by size and count if `None`.
    pub method: Option<Method>,
}

impl Default for DeviceConfig {
    fn default() -> Self {
        Self { copies_max: 4096, copy_deadline: Duration::from_secs(30), method: None }
    }
}

impl DeviceConfig {
    /// Limits the copies that are posted and not passed.
    #[must_use]
    pub fn with_copies_max(mut self, copies_max: usize) -> Self {
        self.copies_max = copies_max;
        self
    }

    /// Limits the time that a copy is waited for.
    #[must_use]
    pub fn with_copy_deadline(mut self, deadline: Duration) -> Self {
        self.copy_deadline = deadline;
        self
    }

    /// Copies by `method` wherever the device offers it: for measurements.
    #[must_use]
    pub fn with_method(mut self, method: Method) -> Self {
        self.method = Some(method);
        self
    }
}

/// A block of one buffer to be copied to another; offsets and length in bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct BlockCopy {
    /// Where it starts in the source.
    pub source: usize,
    /// Where it goes in the target.
    pub target: usize,
    /// How long it is.
    pub len: usize,
}

/// A copy that was posted; completes when it has passed.
///
/// # Cancel safety
/// Dropping it does not stop the copy: what it touches is kept until it has passed.
///
/// # Panics
/// If polled outside a tokio runtime.
#[must_use = "the copy runs, but nobody knows when it is done"]
pub struct DeviceCopy<T>(Pin<Box<dyn Future<Output = Result<T>> + Send>>);

impl<T: Send + 'static> DeviceCopy<T> {
    pub(super) fn new(copy: impl Future<Output = Result<T>> + Send + 'static) -> Self {
        Self(Box::pin(copy))
    }

    pub(super) fn failed(error: Error) -> Self {
        Self::new(std::future::ready(Err(error)))
    }

    pub(super) fn map<U: Send + 'static>(
        self,
        map: impl FnOnce(T) -> U + Send + 'static,
    ) -> DeviceCopy<U> {
        DeviceCopy::new(async move { self.0.await.map(map) })
    }
}

impl<T> Future for DeviceCopy<T> {
    type Output = Result<T>;

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Self::Output> {
        self.0.as_mut().poll(context)
    }
}

impl<T> fmt::Debug for DeviceCopy<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("DeviceCopy").finish_non_exhaustive()
    }
}
