use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use tokio_util::sync::CancellationToken;

use crate::discovery::{Discovery, Instance, Registration};
use crate::error::Result;
use crate::readiness::{Readiness, Served, State};

/// The listing of an instance that comes and goes with its health.
#[derive(Debug)]
pub(super) struct Listing {
    discovery: Arc<dyn Discovery>,
    instance: Mutex<Instance>,
    registration: Mutex<Option<Registration>>,
    is_healthy: AtomicBool,
    /// Fires when the instance leaves for good.
    left: CancellationToken,
}

impl Listing {
    pub(super) async fn new(discovery: Arc<dyn Discovery>, instance: Instance) -> Result<Self> {
        let registration = Mutex::new(Some(discovery.register(instance.clone()).await?));
        let (instance, is_healthy) = (Mutex::new(instance), AtomicBool::new(true));
        let left = CancellationToken::new();
        Ok(Self { discovery, instance, registration, is_healthy, left })
    }

    /// Completes once the instance has left for good. Cancel safe.
    pub(super) async fn left(&self) {
        self.left.cancelled().await;
    }

    pub(super) fn is_healthy(&self) -> bool {
        self.is_healthy.load(Ordering::Relaxed)
    }

    /// Takes the instance out of discovery for good.
    pub(super) fn leave(&self) {
        self.left.cancel();
        self.put(None);
    }

    fn put(&self, registration: Option<Registration>) {
        let mut place = self.registration.lock().unwrap_or_else(PoisonError::into_inner);
        // Under the lock, so that nothing is put in behind the leaving.
        let registration = registration.filter(|_| !self.left.is_cancelled());
        let before = std::mem::replace(&mut *place, registration);
        drop(place);
        drop(before);
    }

    /// Lists or unlists the instance as its engine works or not.
    pub(super) async fn set(&self, outcome: Result<()>) {
        let was_healthy = self.is_healthy.swap(outcome.is_ok(), Ordering::Relaxed);
        match outcome {
            Err(error) if was_healthy => {
                let instance = self.instance.lock().unwrap_or_else(PoisonError::into_inner).clone();
                tracing::warn!(%instance, %error, "does not answer its canary: taken off the list");
                self.put(None);
            }
            Ok(()) if !was_healthy => {
                let next = {
                    let mut own = self.instance.lock().unwrap_or_else(PoisonError::into_inner);
                    own.incarnation += 1;
                    own.clone()
                };
                tracing::info!(instance = %next, "answers its canary: listed again");
                match self.discovery.register(next).await {
                    Ok(registration) => self.put(Some(registration)),
                    Err(error) => {
                        tracing::warn!(%error, "not listed again yet");
                        // The next answer tries again.
                        self.is_healthy.store(false, Ordering::Relaxed);
                    }
                }
            }
            _ => {}
        }
    }
}

/// What the runtime knows of an instance: belongs to its `Serving` alone, and ends with it.
#[derive(Debug)]
pub(super) struct Presence(pub(super) Arc<Listing>);

impl Served for Presence {
    fn readiness(&self) -> Readiness {
        self.0.readiness()
    }
}

impl Listing {
    fn readiness(&self) -> Readiness {
        let instance = self.instance.lock().unwrap_or_else(PoisonError::into_inner).clone();
        let place = self.registration.lock().unwrap_or_else(PoisonError::into_inner);
        let state = if self.left.is_cancelled() {
            State::Leaving
        } else if self.is_healthy() && place.is_some() {
            State::Listed
        } else {
            State::Unhealthy
        };
        Readiness { instance, state }
    }
}
