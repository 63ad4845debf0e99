use std::time::Duration;

use crate::error::{Error, Result};

/// What a session allows its peer, and how long it waits for it.
#[derive(Debug, Clone, serde::Deserialize)]
#[serde(default, deny_unknown_fields)]
#[non_exhaustive]
pub struct Limits {
    /// Bytes on their way or unread per stream.
    pub stream_window: u32,
    /// Bytes on their way or unread in all.
    pub connection_window: u32,
    /// Streams at once.
    pub streams_max: u32,
    /// Bytes of messages that are arriving, in all.
    pub assembly_bytes_max: usize,
    /// How long the peer may be silent before it is asked for a sign of life.
    #[serde(deserialize_with = "crate::time::duration")]
    pub ping_after: Duration,
    /// How long the peer may be silent before it counts as dead.
    #[serde(deserialize_with = "crate::time::duration")]
    pub dead_after: Duration,
    /// How long a server keeps a connection that carries no stream; the client makes another one
    /// when it needs it.
    #[serde(deserialize_with = "crate::time::duration")]
    pub idle_after: Duration,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            stream_window: 256 << 10,
            connection_window: 4 << 20,
            streams_max: 4096,
            assembly_bytes_max: 256 << 20,
            // A sign of life each second, and a silent peer's streams fail well within three.
            ping_after: Duration::from_secs(1),
            dead_after: Duration::from_millis(2500),
            // A pause between two requests costs no connection, a client that forgot this server
            // no place.
            idle_after: Duration::from_secs(300),
        }
    }
}

impl Limits {
    /// Fails with [`InvalidArgument`](crate::ErrorKind::InvalidArgument) if no request would get through.
    pub fn check(&self) -> Result<()> {
        let windows = [self.stream_window, self.connection_window];
        let wrong = if windows.iter().any(|window| !(WINDOW_MIN..=WINDOW_MAX).contains(window)) {
            format!("windows of {windows:?} bytes, not of {WINDOW_MIN} to {WINDOW_MAX}")
        } else if self.streams_max == 0 || self.assembly_bytes_max == 0 {
            "limits of no streams, or of no bytes that arrive".to_owned()
        } else if self.ping_after < PING_MIN
            || self.dead_after <= self.ping_after
            || self.dead_after > DEAD_MAX
        {
            let (ping, dead) = (self.ping_after, self.dead_after);
            format!("ping_after of {ping:?} and dead_after of {dead:?}")
        } else if self.idle_after < IDLE_MIN {
            format!("idle_after of {:?}, not of {IDLE_MIN:?} at least", self.idle_after)
        } else {
            return Ok(());
        };
        Err(Error::invalid(wrong))
    }
}

/// Room for a few frames at least: below it, credit could run dry for good.
pub(super) const WINDOW_MIN: u32 = 4 << 10;

/// Keeps sums of credit far from overflow.
pub(super) const WINDOW_MAX: u32 = 1 << 30;

/// More often would be load and no help.
const PING_MIN: Duration = Duration::from_millis(10);

/// Keeps sums of times far from overflow.
const DEAD_MAX: Duration = Duration::from_secs(365 * 24 * 3600);

/// A connection that is ended sooner is hardly made.
const IDLE_MIN: Duration = Duration::from_millis(10);
