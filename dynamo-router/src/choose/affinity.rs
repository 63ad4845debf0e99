//! Sessions stay with their worker.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::num::NonZeroUsize;
use std::time::{Duration, Instant};

use dynamo_core::Context;
use dynamo_core::protocol::{GenerateRequest, WorkerId};

/// The metadata of a [`Context`] that says which session a request is of.
pub const SESSION_METADATA: &str = "session";

/// A session of a tenant, by a hash: two that collide share a worker, and nothing else.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct SessionKey(u64);

impl SessionKey {
    /// Returns the key of the session that the request's context names, under
    /// [`SESSION_METADATA`], if it does.
    pub fn of(ctx: &Context, request: &GenerateRequest) -> Option<Self> {
        let id = ctx.metadata().get(SESSION_METADATA)?;
        Some(Self::new(&request.namespace.tenant, id))
    }

    /// Returns the key of the session that `tenant` calls `id`.
    pub fn new(tenant: &str, id: &str) -> Self {
        let mut hasher = DefaultHasher::new();
        (tenant, id).hash(&mut hasher);
        Self(hasher.finish())
    }
}

/// How firmly a session stays with the worker that had it last.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stickiness {
    /// As long as that worker's queue is at most so much longer than the shortest one; beyond that
    /// the cost decides, and the session stays where it went.
    Soft {
        /// The time to wait for the worker that is worth to stay with it.
        queue_excess_max: Duration,
    },
    /// As long as the worker is there, however busy it is.
    Hard,
}

impl Stickiness {
    /// By how much the worker's queue may be longer than the shortest one, in seconds.
    pub(crate) fn excess_max_s(self) -> f64 {
        match self {
            Self::Soft { queue_excess_max } => queue_excess_max.as_secs_f64(),
            Self::Hard => f64::INFINITY,
        }
    }
}

impl Default for Stickiness {
    /// Soft, and a second: about what it takes to prefill again what a conversation has cached.
    fn default() -> Self {
        Self::Soft { queue_excess_max: Duration::from_secs(1) }
    }
}

/// Which sessions are remembered, and for how long.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub struct AffinityConfig {
    /// How firmly a session stays.
    pub stickiness: Stickiness,
    /// How long a session is remembered after its latest request.
    pub ttl: Duration,
    /// Sessions that are remembered; who was used longest ago is forgotten first.
    pub sessions_max: NonZeroUsize,
}

impl Default for AffinityConfig {
    fn default() -> Self {
        let stickiness = Stickiness::default();
        Self { stickiness, ttl: TTL, sessions_max: SESSIONS_MAX }
    }
}

impl AffinityConfig {
    /// Keeps sessions with their workers as `stickiness` says.
    #[must_use]
    pub fn with_stickiness(mut self, stickiness: Stickiness) -> Self {
        self.stickiness = stickiness;
        self
    }

    /// Remembers a session for `ttl` after its latest request.
    #[must_use]
    pub fn with_ttl(mut self, ttl: Duration) -> Self {
        self.ttl = ttl;
        self
    }

    /// Remembers `sessions_max` sessions at once.
    #[must_use]
    pub fn with_sessions_max(mut self, sessions_max: NonZeroUsize) -> Self {
        self.sessions_max = sessions_max;
        self
    }
}

/// Which worker each session was last sent to; pure, and O(1) per call.
///
/// Sessions are in a list by their latest request, which is also the order in which they expire.
/// One whose worker is gone is forgotten when it is next asked for, or by its time.
#[derive(Debug)]
pub struct SessionAffinity {
    config: AffinityConfig,
    places: HashMap<SessionKey, usize>,
    sessions: Vec<Session>,
    /// The ends of the list, or [`NONE`].
    newest: usize,
    oldest: usize,
}

#[derive(Debug, Clone, Copy)]
struct Session {
    key: SessionKey,
    worker: WorkerId,
    used: Instant,
    newer: usize,
    older: usize,
}

impl SessionAffinity {
    /// Creates one that remembers nothing yet.
    pub fn new(config: AffinityConfig) -> Self {
        let (places, sessions) = (HashMap::new(), Vec::new());
        Self { config, places, sessions, newest: NONE, oldest: NONE }
    }

    /// Returns the worker that had the session last, if it is remembered and the worker `is_there`.
    pub fn find(
        &mut self,
        key: SessionKey,
        now: Instant,
        is_there: impl FnOnce(WorkerId) -> bool,
    ) -> Option<WorkerId> {
        let &place = self.places.get(&key)?;
        let Session { worker, used, .. } = self.sessions[place];
        if self.is_over(used, now) || !is_there(worker) {
            self.forget(place);
            return None;
        }
        Some(worker)
    }

    /// Remembers that the session went to `worker`, from now on for the whole time again.
    pub fn bind(&mut self, key: SessionKey, worker: WorkerId, now: Instant) {
        if let Entry::Occupied(place) = self.places.entry(key) {
            let place = *place.get();
            self.unlink(place);
            self.sessions[place] = Session { worker, used: now, ..self.sessions[place] };
            self.link(place);
            return;
        }
        // Two at most: what has expired goes faster than it comes, and no call takes long.
        for _ in 0..2 {
            let oldest = self.sessions.get(self.oldest);
            if oldest.is_some_and(|oldest| self.is_over(oldest.used, now)) {
                self.forget(self.oldest);
            }
        }
        if self.sessions.len() == self.config.sessions_max.get() {
            self.forget(self.oldest);
        }
        let place = self.sessions.len();
        self.sessions.push(Session { key, worker, used: now, newer: NONE, older: NONE });
        self.places.insert(key, place);
        self.link(place);
    }

    /// Returns how firmly sessions stay.
    pub fn stickiness(&self) -> Stickiness {
        self.config.stickiness
    }

    /// Returns how many sessions are remembered.
    pub fn len(&self) -> usize {
        self.sessions.len()
    }

    /// Tells whether nothing is remembered.
    pub fn is_empty(&self) -> bool {
        self.sessions.is_empty()
    }

    fn is_over(&self, used: Instant, now: Instant) -> bool {
        now.saturating_duration_since(used) >= self.config.ttl
    }

    fn forget(&mut self, place: usize) {
        self.unlink(place);
        let gone = self.sessions.swap_remove(place);
        self.places.remove(&gone.key);
        // The last has taken its place: its neighbours have to know.
        if let Some(&Session { key, newer, older, .. }) = self.sessions.get(place) {
            self.places.insert(key, place);
            *self.older_of(newer) = place;
            *self.newer_of(older) = place;
        }
    }

    fn link(&mut self, place: usize) {
        let before = self.newest;
        (self.sessions[place].newer, self.sessions[place].older) = (NONE, before);
        *self.newer_of(before) = place;
        self.newest = place;
    }

    fn unlink(&mut self, place: usize) {
        let Session { newer, older, .. } = self.sessions[place];
        *self.older_of(newer) = older;
        *self.newer_of(older) = newer;
    }

    /// Where the neighbour to the older side of `place` is said; of the end of the list, its start.
    fn older_of(&mut self, place: usize) -> &mut usize {
        if place == NONE { &mut self.newest } else { &mut self.sessions[place].older }
    }

    fn newer_of(&mut self, place: usize) -> &mut usize {
        if place == NONE { &mut self.oldest } else { &mut self.sessions[place].newer }
    }
}

const NONE: usize = usize::MAX;
/// As long as what a conversation has cached is likely to be there still.
const TTL: Duration = Duration::from_secs(600);
/// Ten megabytes of sessions.
const SESSIONS_MAX: NonZeroUsize = match NonZeroUsize::new(131_072) {
    Some(sessions) => sessions,
    None => unreachable!(),
};

#[cfg(test)]
mod tests;
