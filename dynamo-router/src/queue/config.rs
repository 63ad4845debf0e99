use std::num::NonZeroU64;
use std::time::Duration;

use super::busy::BusyThresholds;

/// Which of the requests that wait goes next.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[non_exhaustive]
pub enum QueuePolicy {
    /// The first that came.
    #[default]
    Fcfs,
    /// The one whose (1 + priority) / new tokens is greatest: weighted shortest processing time,
    /// which makes the mean wait the shortest there can be (Smith 1956). Long prompts wait for
    /// short ones, to the end of their patience.
    Wspt,
    /// The one whose deadline is next; those without one go last, by arrival.
    Edf,
    /// Tenants in turn, each for `quantum_tokens` of prompt a round: deficit round robin (Shreedhar
    /// and Varghese 1995). Of one tenant, the first that came.
    Fair {
        /// Prompt tokens that a tenant may have routed in a round. What it does not use is kept
        /// for its next turn, as long as it has a request waiting.
        quantum_tokens: NonZeroU64,
    },
}

/// What may wait, how long, and when a worker is too busy for more.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct QueueConfig {
    /// Who goes next.
    pub policy: QueuePolicy,
    /// Whether a request goes before all of lower priority. If not, priority is only the weight of
    /// [`QueuePolicy::Wspt`].
    pub strict_priority: bool,
    /// Requests that may wait.
    pub entries_max: usize,
    /// Prompt tokens of all that wait, together; a single request may have more.
    pub prompt_tokens_max: usize,
    /// Requests of one tenant that may wait. By default as many as of all: where tenants are to be
    /// treated alike it should be less, or one of them takes all the room.
    pub tenant_entries_max: usize,
    /// How long a request may wait, if its deadline is not earlier.
    pub wait_max: Duration,
    /// How often those that wait look for load that has gone without a word, and for workers that
    /// nobody has said have come; at least 10 ms. Whatever is released, and each change of a
    /// client's instances, is looked at without that.
    pub look_every: Duration,
    /// When a worker takes no further request.
    pub busy: BusyThresholds,
}

impl Default for QueueConfig {
    fn default() -> Self {
        Self {
            policy: QueuePolicy::default(),
            strict_priority: true,
            entries_max: ENTRIES_MAX,
            prompt_tokens_max: PROMPT_TOKENS_MAX,
            tenant_entries_max: ENTRIES_MAX,
            wait_max: WAIT_MAX,
            look_every: LOOK_EVERY,
            busy: BusyThresholds::default(),
        }
    }
}

impl QueueConfig {
    /// Orders by `policy`.
    #[must_use]
    pub fn with_policy(mut self, policy: QueuePolicy) -> Self {
        self.policy = policy;
        self
    }

    /// Lets a request go before all of lower priority, or not.
    #[must_use]
    pub fn with_strict_priority(mut self, strict: bool) -> Self {
        self.strict_priority = strict;
        self
    }

    /// Lets `entries` requests of `prompt_tokens` prompt tokens together wait.
    #[must_use]
    pub fn with_room(mut self, entries: usize, prompt_tokens: usize) -> Self {
        (self.entries_max, self.prompt_tokens_max) = (entries, prompt_tokens);
        self
    }

    /// Lets `entries` requests of one tenant wait.
    #[must_use]
    pub fn with_tenant_entries_max(mut self, entries: usize) -> Self {
        self.tenant_entries_max = entries;
        self
    }

    /// Lets a request wait for `wait` at most, and for a day whatever it is.
    #[must_use]
    pub fn with_wait_max(mut self, wait: Duration) -> Self {
        self.wait_max = wait;
        self
    }

    /// Has those that wait look every so often for load that has gone without a word.
    #[must_use]
    pub fn with_look_every(mut self, pause: Duration) -> Self {
        self.look_every = pause;
        self
    }

    /// Takes a worker for busy by `busy`.
    #[must_use]
    pub fn with_busy(mut self, busy: BusyThresholds) -> Self {
        self.busy = busy;
        self
    }
}

/// Their contexts and prompts are kept in memory meanwhile: some tens of megabytes.
const ENTRIES_MAX: usize = 4096;
/// What eight workers prefill in a minute at 50,000 tokens per second each.
const PROMPT_TOKENS_MAX: usize = 24_000_000;
/// A client that has waited longer for its first token has given up, or will.
const WAIT_MAX: Duration = Duration::from_secs(30);
/// What workers report fades within five seconds, and leases end within a minute.
const LOOK_EVERY: Duration = Duration::from_secs(1);
