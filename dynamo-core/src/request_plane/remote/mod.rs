//! What planes between processes share: streams over a connection that a task drives.
//!
//! ```text
//! client  RemoteEngine ─► Connection ─┐            ┌─ Connection ─► a task per request ─► engine
//!                         one task    └── Session ─┘  one task
//! ```
//!
//! Each connection is one task that moves bytes between a transport and a
//! [`Session`](crate::wire::session::Session): whatever is due when the transport takes more goes
//! into one write, and nothing waits for company. A request that is alone on its connection moves its
//! bytes itself, without waking that task.

mod answer;
mod bound;
mod call;
mod connection;
mod driver;
mod engine;
mod peers;
mod shares;

use std::sync::atomic::AtomicU64;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

pub(crate) use answer::answer;
pub(crate) use bound::Bound;
pub(crate) use connection::{Connection, Stage, Vouch};
pub(crate) use engine::{Reach, RemoteEngine};
pub(crate) use peers::Peers;
pub(crate) use shares::{REQUESTS_MAX, Share, Shares};

/// What the connections of a plane have done so far.
#[derive(Default)]
pub(crate) struct Counters {
    pub(crate) connections: AtomicU64,
    pub(crate) writes: AtomicU64,
    pub(crate) written_bytes: AtomicU64,
}

/// A peer that is there answers within this even over long distance.
pub(crate) const CONNECT_MAX: Duration = Duration::from_secs(3);

/// What is queued when a connection or its link ends goes out within this, or not at all.
pub(crate) const FLUSH_MAX: Duration = Duration::from_secs(1);

pub(crate) fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests;
