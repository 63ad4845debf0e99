use std::collections::BTreeMap;
use std::fmt;
use std::hash::{BuildHasher, Hasher, RandomState};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use tokio_util::sync::CancellationToken;

use super::Priority;
use crate::error::{Error, ErrorKind, Result};
use crate::protocol::{InstanceId, TraceContext};
use crate::time::{Clock, SystemClock};

/// Identifies one request over all the hops of its graph.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct RequestId(Arc<str>);

impl RequestId {
    /// Returns a fresh random id of 32 hexadecimal digits.
    pub fn random() -> Self {
        let half = || RandomState::new().build_hasher().finish();
        Self(format!("{:016x}{:016x}", half(), half()).into())
    }

    /// Returns the id as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl From<&str> for RequestId {
    fn from(id: &str) -> Self {
        Self(id.into())
    }
}

impl fmt::Display for RequestId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Debug for RequestId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// What goes with a request through the graph: id, deadline, priority, metadata and cancellation.
///
/// Cheap to clone; clones share their cancellation. Cancellation has two levels:
/// *stop* asks for an early end (finish the item, report usage, end), *kill* ends the stream at
/// once. A [child](Self::child) is cancelled with its parent, never the other way round.
#[derive(Clone)]
pub struct Context {
    id: RequestId,
    deadline: Option<Instant>,
    priority: Priority,
    metadata: Arc<BTreeMap<String, String>>,
    trace: Option<TraceContext>,
    tried: Option<Tried>,
    stop: CancellationToken,
    kill: CancellationToken,
    killed: Arc<Killed>,
}

/// Whether a context was killed, told without a lock: a stream asks before each item.
#[derive(Debug, Default)]
struct Killed {
    is_killed: AtomicBool,
    parent: Option<Arc<Self>>,
}

impl Killed {
    fn is_killed(&self) -> bool {
        self.is_killed.load(Ordering::Acquire)
            || self.parent.as_ref().is_some_and(|parent| parent.is_killed())
    }
}

/// The instances that the attempts at one request have asked.
#[derive(Debug, Clone, Default)]
struct Tried(Arc<Mutex<Vec<InstanceId>>>);

impl Context {
    /// Creates the context of a new request with a random id, no deadline and normal priority.
    pub fn new() -> Self {
        Self::with_id(RequestId::random())
    }

    /// Creates the context of a new request named `id`.
    pub fn with_id(id: RequestId) -> Self {
        Self {
            id,
            deadline: None,
            priority: Priority::NORMAL,
            metadata: Arc::default(),
            trace: None,
            tried: None,
            stop: CancellationToken::new(),
            kill: CancellationToken::new(),
            killed: Arc::default(),
        }
    }

    /// Ends the request at `deadline` at the latest; an earlier deadline already set stays.
    #[must_use]
    pub fn with_deadline(mut self, deadline: Instant) -> Self {
        self.deadline = Some(self.deadline.map_or(deadline, |earlier| earlier.min(deadline)));
        self
    }

    /// Ends the request `timeout` from now at the latest; one beyond the end of time is none.
    #[must_use]
    pub fn with_timeout(self, timeout: Duration) -> Self {
        match SystemClock.now().checked_add(timeout) {
            Some(deadline) => self.with_deadline(deadline),
            None => self,
        }
    }

    /// Sets how urgent the request is.
    #[must_use]
    pub fn with_priority(mut self, priority: Priority) -> Self {
        self.priority = priority;
        self
    }

    /// Adds a metadata pair that travels with the request.
    #[must_use]
    pub fn with_metadata(mut self, key: impl Into<String>, value: impl Into<String>) -> Self {
        Arc::make_mut(&mut self.metadata).insert(key.into(), value.into());
        self
    }

    /// Places the request in a distributed trace.
    #[must_use]
    pub fn with_trace(mut self, trace: TraceContext) -> Self {
        self.trace = Some(trace);
        self
    }

    /// Returns a context whose attempts at this request share what they tried: a
    /// [`Client`](crate::Client) notes the instance it asks, and asks another one for the next
    /// attempt if there is one. Where attempts are shared already, by a layer further out, they
    /// stay shared with it.
    #[must_use]
    pub fn with_attempts(mut self) -> Self {
        self.tried.get_or_insert_default();
        self
    }

    /// Returns a context for a part of this request: same id, deadline, priority and metadata,
    /// cancelled with this one, and cancellable on its own.
    #[must_use]
    pub fn child(&self) -> Self {
        let (stop, kill) = (self.stop.child_token(), self.kill.child_token());
        let parent = Some(Arc::clone(&self.killed));
        let killed = Arc::new(Killed { is_killed: AtomicBool::new(false), parent });
        Self { stop, kill, killed, ..self.clone() }
    }

    /// Returns the id of the request.
    pub fn id(&self) -> &RequestId {
        &self.id
    }

    /// Returns when the request must have ended.
    pub fn deadline(&self) -> Option<Instant> {
        self.deadline
    }

    /// Returns how much time is left; zero once the deadline has passed, `None` without one.
    pub fn remaining(&self) -> Option<Duration> {
        self.deadline.map(|deadline| deadline.saturating_duration_since(SystemClock.now()))
    }

    /// Returns how urgent the request is.
    pub fn priority(&self) -> Priority {
        self.priority
    }

    /// Returns the metadata that travels with the request.
    pub fn metadata(&self) -> &BTreeMap<String, String> {
        &self.metadata
    }

    /// Returns where the request stands in a distributed trace.
    pub fn trace(&self) -> Option<&TraceContext> {
        self.trace.as_ref()
    }

    /// Returns the instances that attempts at this request have asked so far.
    pub fn tried(&self) -> Vec<InstanceId> {
        self.tried.as_ref().map_or_else(Vec::new, |tried| {
            tried.0.lock().unwrap_or_else(PoisonError::into_inner).clone()
        })
    }

    /// Notes that `instance` is asked, if the attempts of this request are noted.
    pub fn note_tried(&self, instance: InstanceId) {
        if let Some(tried) = &self.tried {
            tried.0.lock().unwrap_or_else(PoisonError::into_inner).push(instance);
        }
    }

    /// Asks for an early, orderly end of the answer.
    pub fn stop(&self) {
        self.stop.cancel();
    }

    /// Ends the request at once.
    pub fn kill(&self) {
        // Whoever is woken finds it said.
        self.killed.is_killed.store(true, Ordering::Release);
        self.stop.cancel();
        self.kill.cancel();
    }

    /// Tells whether the answer should end after the current item.
    pub fn is_stopped(&self) -> bool {
        self.stop.is_cancelled()
    }

    /// Tells whether the request is over.
    pub fn is_killed(&self) -> bool {
        self.killed.is_killed()
    }

    /// Completes once an early end is asked for (or the request is killed).
    ///
    /// # Cancel safety
    /// Cancel safe.
    pub async fn stopped(&self) {
        self.stop.cancelled().await;
    }

    /// Completes once the request is killed.
    ///
    /// # Cancel safety
    /// Cancel safe.
    pub async fn killed(&self) {
        self.kill.cancelled().await;
    }

    /// Fails if the request is over already: [`Cancelled`](ErrorKind::Cancelled) or
    /// [`DeadlineExceeded`](ErrorKind::DeadlineExceeded).
    pub fn check(&self) -> Result<()> {
        if self.is_killed() {
            return Err(self.cancelled_error());
        }
        match self.remaining() {
            Some(left) if left.is_zero() => Err(self.deadline_error()),
            _ => Ok(()),
        }
    }

    /// Runs `work` until it completes, the request is killed or its deadline passes.
    ///
    /// # Cancel safety
    /// As cancel safe as `work`, which is dropped when the request ends first.
    pub async fn bound<T>(&self, work: impl Future<Output = Result<T>>) -> Result<T> {
        self.check()?;
        let deadline = async {
            match self.deadline {
                Some(deadline) => tokio::time::sleep_until(deadline.into()).await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            biased;
            () = self.killed() => Err(self.cancelled_error()),
            result = work => result,
            () = deadline => Err(self.deadline_error()),
        }
    }

    #[cfg(any(feature = "tcp", feature = "nats"))]
    pub(crate) fn stop_token(&self) -> &CancellationToken {
        &self.stop
    }

    pub(crate) fn kill_token(&self) -> &CancellationToken {
        &self.kill
    }

    pub(super) fn cancelled_error(&self) -> Error {
        Error::new(ErrorKind::Cancelled, format!("request {}", self.id))
    }

    pub(super) fn deadline_error(&self) -> Error {
        Error::new(ErrorKind::DeadlineExceeded, format!("request {}", self.id))
    }
}

impl Default for Context {
    fn default() -> Self {
        Self::new()
    }
}

impl fmt::Debug for Context {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Context")
            .field("id", &self.id)
            .field("deadline", &self.deadline)
            .field("priority", &self.priority)
            .field("stopped", &self.is_stopped())
            .field("killed", &self.is_killed())
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_child_is_cancelled_with_its_parent_and_not_the_other_way_round() {
        let parent = Context::new();
        let (first, second) = (parent.child(), parent.child());
        first.kill();
        assert!(first.is_killed() && !parent.is_killed() && !second.is_killed());
        parent.stop();
        assert!(second.is_stopped() && !second.is_killed());
        parent.kill();
        assert!(second.is_killed());
    }

    #[test]
    fn attempts_within_attempts_share_what_they_tried() {
        let plain = Context::new();
        plain.note_tried(InstanceId(1));
        assert_eq!(plain.tried(), []);
        let outer = plain.with_attempts();
        outer.child().with_attempts().note_tried(InstanceId(2));
        assert_eq!(outer.tried(), [InstanceId(2)]);
    }

    #[test]
    fn a_deadline_only_ever_moves_closer() {
        let now = SystemClock.now();
        let near = now + Duration::from_secs(1);
        let ctx = Context::new().with_deadline(near).with_deadline(now + Duration::from_secs(9));
        assert_eq!(ctx.child().deadline(), Some(near));
        assert_eq!(ctx.with_timeout(Duration::MAX).deadline(), Some(near));
        assert_eq!(Context::new().with_timeout(Duration::MAX).deadline(), None);
    }

    #[tokio::test(start_paused = true)]
    async fn bound_work_ends_at_the_deadline_or_the_kill() {
        let ctx = Context::new().with_timeout(Duration::from_secs(1));
        let error = ctx.bound(std::future::pending::<Result<()>>()).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::DeadlineExceeded);

        let ctx = Context::new();
        ctx.kill();
        let error = ctx.bound(async { Ok(()) }).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Cancelled);
    }
}
