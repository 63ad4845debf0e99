use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio_util::sync::CancellationToken;

use crate::discovery::{Discovery, Instance, Registration};
use crate::error::{ErrorKind, Result};
use crate::readiness::{Readiness, Served, State};

/// The listing of an instance that comes and goes with its health.
#[derive(Debug)]
pub(super) struct Listing {
    discovery: Arc<dyn Discovery>,
    instance: Mutex<Instance>,
    place: Mutex<Place>,
    is_healthy: AtomicBool,
    /// Fires when the instance leaves for good.
    left: CancellationToken,
}

/// Where an instance stands in discovery.
#[derive(Debug)]
enum Place {
    Listed(Registration),
    /// It is not, and why.
    Unlisted(String),
    /// Another one is there, by this conflict.
    Lost(String),
}

impl Place {
    fn conflict(&self) -> Option<String> {
        match self {
            Self::Listed(registration) => registration.displaced(),
            Self::Unlisted(_) => None,
            Self::Lost(conflict) => Some(conflict.clone()),
        }
    }
}

impl Listing {
    pub(super) async fn new(discovery: Arc<dyn Discovery>, instance: Instance) -> Result<Self> {
        let place = Place::Listed(discovery.register(instance.clone()).await?);
        let (instance, place) = (Mutex::new(instance), Mutex::new(place));
        let (is_healthy, left) = (AtomicBool::new(true), CancellationToken::new());
        Ok(Self { discovery, instance, place, is_healthy, left })
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
        self.put(Place::Unlisted(String::new()));
    }

    fn put(&self, next: Place) {
        let mut place = self.place();
        // Under the lock, so that nothing is put in behind the leaving.
        let has_left = self.left.is_cancelled() && matches!(next, Place::Listed(_));
        let before = if has_left { next } else { std::mem::replace(&mut *place, next) };
        drop(place);
        drop(before);
    }

    /// Lists or unlists the instance as its engine works or not.
    pub(super) async fn set(&self, outcome: Result<()>) {
        let was_healthy = self.is_healthy.swap(outcome.is_ok(), Ordering::Relaxed);
        if self.place().conflict().is_some() {
            // It would have to outbid whoever has the place, which is the later one.
            return;
        }
        match outcome {
            Err(error) if was_healthy => {
                let instance = self.instance().clone();
                tracing::warn!(%instance, %error, "does not answer its canary: taken off the list");
                self.put(Place::Unlisted(error.to_string()));
            }
            Ok(()) if !was_healthy => self.list_again().await,
            _ => {}
        }
    }

    async fn list_again(&self) {
        let next = {
            let mut own = self.instance();
            own.incarnation += 1;
            own.clone()
        };
        tracing::info!(instance = %next, "answers its canary: listed again");
        match self.discovery.register(next).await {
            Ok(registration) => self.put(Place::Listed(registration)),
            Err(error) if error.kind() == ErrorKind::Conflict => {
                tracing::error!(%error, "another instance has come in between");
                self.put(Place::Lost(error.to_string()));
            }
            Err(error) => {
                tracing::warn!(%error, "not listed again yet");
                self.put(Place::Unlisted(error.to_string()));
                // The next answer tries again.
                self.is_healthy.store(false, Ordering::Relaxed);
            }
        }
    }

    fn place(&self) -> MutexGuard<'_, Place> {
        self.place.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn instance(&self) -> MutexGuard<'_, Instance> {
        self.instance.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn readiness(&self) -> Readiness {
        let instance = self.instance().clone();
        let place = self.place();
        let (state, reason) = if self.left.is_cancelled() {
            (State::Leaving, None)
        } else if let Some(conflict) = place.conflict() {
            (State::Displaced, Some(conflict))
        } else {
            match &*place {
                Place::Unlisted(why) => (State::Unhealthy, Some(why.clone())),
                _ => (State::Listed, None),
            }
        };
        Readiness { instance, state, reason }
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
