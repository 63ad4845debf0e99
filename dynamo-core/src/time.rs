//! Time as a parameter: pure code takes a [`Clock`] and never reads one of its own.

use std::fmt;
use std::time::{Duration, Instant};

use serde::{Deserialize, Deserializer, de};

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

/// Reads a duration as people write it: `200ms`, `5s`, `1m`, `2h`.
pub(crate) fn parse_duration(text: &str) -> Option<Duration> {
    let text = text.trim();
    let (count, unit) = text.split_at(text.find(|c: char| !c.is_ascii_digit())?);
    let count: u64 = count.parse().ok()?;
    match unit.trim_start() {
        "ms" => Some(Duration::from_millis(count)),
        "s" => Some(Duration::from_secs(count)),
        "m" => count.checked_mul(60).map(Duration::from_secs),
        "h" => count.checked_mul(3600).map(Duration::from_secs),
        _ => None,
    }
}

/// For a field of a config that is a duration.
pub(crate) fn duration<'de, D: Deserializer<'de>>(from: D) -> Result<Duration, D::Error> {
    parse_duration(&String::deserialize(from)?)
        .ok_or_else(|| de::Error::custom("is no time such as 200ms, 5s, 1m or 2h"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_are_a_number_and_a_unit() {
        let ms = |text| parse_duration(text).map(|time| time.as_millis());
        for (text, expected) in
            [("200ms", 200), ("5s", 5_000), (" 5 s ", 5_000), ("1m", 60_000), ("2h", 7_200_000)]
        {
            assert_eq!(ms(text), Some(expected), "{text:?}");
        }
        for text in
            ["", "5", "s", "-5s", "1.5s", "5 sec", "5s5", "99999999999999999999s", "7\u{b5}s"]
        {
            assert_eq!(ms(text), None, "{text:?}");
        }
        assert_eq!(parse_duration(&format!("{}h", u64::MAX)), None);
    }
}
