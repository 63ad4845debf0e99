use std::fmt;
use std::sync::{Arc, Mutex, PoisonError};

use super::Instance;
use crate::error::{Error, ErrorKind};

/// Keeps an instance registered; dropping it removes the instance.
#[must_use = "dropping the registration removes the instance"]
pub struct Registration {
    remove: Option<Box<dyn FnOnce() + Send + Sync>>,
    displacement: Displacement,
}

impl Registration {
    /// Creates a guard that runs `remove` once.
    pub fn new(remove: impl FnOnce() + Send + Sync + 'static) -> Self {
        Self { remove: Some(Box::new(remove)), displacement: Displacement::default() }
    }

    /// Learns from `displacement` when another one has taken the place.
    pub fn with_displacement(mut self, displacement: Displacement) -> Self {
        self.displacement = displacement;
        self
    }

    /// Tells why the instance is not listed any more although it has not been removed: the conflict
    /// by which another one has its place.
    pub fn displaced(&self) -> Option<String> {
        self.displacement.lock().clone()
    }
}

impl Drop for Registration {
    fn drop(&mut self) {
        if let Some(remove) = self.remove.take() {
            remove();
        }
    }
}

impl fmt::Debug for Registration {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Registration")
            .field("displacement", &self.displacement)
            .finish_non_exhaustive()
    }
}

/// How a directory tells a [`Registration`] that another one has taken its place; cheap to clone.
#[derive(Debug, Clone, Default)]
pub struct Displacement(Arc<Mutex<Option<String>>>);

impl Displacement {
    /// Notes the conflict that the place was lost by; the first one counts.
    pub fn by(&self, conflict: &Error) {
        self.lock().get_or_insert_with(|| conflict.to_string());
    }

    /// Notes that `later` has the place.
    pub(super) fn by_later(&self, later: &Instance) {
        let message = format!("{later} is registered as incarnation {}", later.incarnation);
        self.by(&Error::new(ErrorKind::Conflict, message));
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Option<String>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
