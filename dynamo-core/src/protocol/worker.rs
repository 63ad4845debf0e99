use std::fmt;
use std::hash::{BuildHasher, Hasher, RandomState};

/// Identifies one instance of a component for as long as it lives.
///
/// All endpoints that one worker serves share its id, so that what the worker publishes (KV
/// events, load) and where requests are sent are the same name.
#[derive(
    Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, serde::Serialize, serde::Deserialize,
)]
pub struct InstanceId(pub u64);

impl InstanceId {
    /// Returns an id that no other instance has, save by a chance of 2^-64.
    pub fn random() -> Self {
        // Unique, not secret: std keys a thread's first RandomState from the system's entropy and
        // counts on from there.
        Self(RandomState::new().build_hasher().finish())
    }
}

impl fmt::Display for InstanceId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:x}", self.0)
    }
}

impl fmt::Debug for InstanceId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// The unit of routing: one data-parallel rank of one instance, with a KV cache of its own.
#[derive(
    Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, serde::Serialize, serde::Deserialize,
)]
pub struct WorkerId {
    /// The instance that serves the rank.
    pub instance: InstanceId,
    /// The data-parallel rank inside the instance; 0 where there is only one.
    pub rank: u32,
}

impl WorkerId {
    /// Returns rank 0 of `instance`.
    pub const fn new(instance: InstanceId) -> Self {
        Self { instance, rank: 0 }
    }
}

impl From<InstanceId> for WorkerId {
    fn from(instance: InstanceId) -> Self {
        Self::new(instance)
    }
}

impl fmt::Display for WorkerId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}", self.instance, self.rank)
    }
}

impl fmt::Debug for WorkerId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}
