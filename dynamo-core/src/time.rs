//! Time as a parameter: pure code takes a [`Clock`] and never reads one of its own.

use std::fmt;
use std::time::{Duration, Instant};

/// A source of monotonic time.
pub trait Clock: Send + Sync + fmt::Debug + 'static {
    /// Returns the current instant; it never goes back.
    fn now(&self) -> Instant;
}

/// The monotonic clock of the process.
///
/// Inside a tokio runtime it is the runtime's clock, so a test that pauses tokio's time pauses
/// this clock with it.
#[derive(Debug, Clone, Copy, Default)]
pub struct SystemClock;

impl Clock for SystemClock {
    fn now(&self) -> Instant {
        tokio::time::Instant::now().into_std()
    }
}

/// A clock that moves only when told to: for tests and simulators.
#[derive(Debug)]
pub struct ManualClock {
    start: Instant,
    elapsed: std::sync::Mutex<Duration>,
}

impl ManualClock {
    /// Creates a clock that stands still at an arbitrary instant.
    pub fn new() -> Self {
        Self { start: SystemClock.now(), elapsed: std::sync::Mutex::default() }
    }

    /// Moves the clock forward by `step`.
    pub fn advance(&self, step: Duration) {
        *self.elapsed.lock().unwrap_or_else(std::sync::PoisonError::into_inner) += step;
    }
}

impl Default for ManualClock {
    fn default() -> Self {
        Self::new()
    }
}

impl Clock for ManualClock {
    fn now(&self) -> Instant {
        self.start + *self.elapsed.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
    }
}
