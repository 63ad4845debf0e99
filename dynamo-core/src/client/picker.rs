use std::fmt;

use crate::discovery::Instance;
use crate::engine::Context;
use crate::error::Result;
use crate::protocol::InstanceId;

/// Chooses which instance gets a request.
///
/// # Contract
/// - `candidates` is never empty and ordered by id; the pick is one of them.
/// - A picker that counts load counts it from the pick until the pick's guard is dropped, which is
///   when the *stream* ends.
pub trait Picker<Req>: Send + Sync + 'static {
    /// Chooses one of `candidates`.
    fn pick(&self, ctx: &Context, request: &Req, candidates: &[Instance]) -> Result<Pick>;
}

/// The chosen instance, which of its ranks, and what to hold while it works.
#[must_use = "dropping the pick releases what was booked for it"]
pub struct Pick {
    instance: InstanceId,
    rank: Option<u32>,
    guard: Option<Box<dyn Send>>,
}

impl Pick {
    /// Picks `instance`.
    pub fn new(instance: InstanceId) -> Self {
        Self { instance, rank: None, guard: None }
    }

    /// Picks a data-parallel rank of the instance; without, any will do. Its engine reads it as
    /// [`Context::rank`].
    pub fn with_rank(mut self, rank: u32) -> Self {
        self.rank = Some(rank);
        self
    }

    /// Holds `guard` until the stream ends.
    pub fn with_guard(mut self, guard: impl Send + 'static) -> Self {
        self.guard = Some(Box::new(guard));
        self
    }

    /// Returns the instance that was picked.
    pub fn instance(&self) -> InstanceId {
        self.instance
    }

    /// Returns the rank that was picked, if one was.
    pub fn rank(&self) -> Option<u32> {
        self.rank
    }

    pub(super) fn into_guard(self) -> Option<Box<dyn Send>> {
        self.guard
    }
}

impl fmt::Debug for Pick {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Pick")
            .field("instance", &self.instance)
            .field("rank", &self.rank)
            .finish_non_exhaustive()
    }
}
