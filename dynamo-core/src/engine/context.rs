use std::collections::BTreeMap;
use std::fmt;
use std::hash::{BuildHasher, Hasher, RandomState};
use std::sync::{Arc, Mutex, PoisonError};
#[cfg(any(feature = "tcp", feature = "nats"))]
use std::task::Waker;
use std::time::{Duration, Instant};

use super::Priority;
#[cfg(any(feature = "tcp", feature = "nats"))]
use super::cancel::Listening;
use super::cancel::{Cancellation, Level, Reached};
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
        let mut bits = u128::from(half()) << 64 | u128::from(half());
        let mut text = [0; 32];
        for digit in &mut text {
            *digit = b"0123456789abcdef"[(bits >> 124) as usize];
            bits <<= 4;
        }
        Self(String::from_utf8_lossy(&text).into())
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
    facts: Arc<Facts>,
    cancellation: Arc<Cancellation>,
}

/// What is known of a request; shared until it is changed.
#[derive(Clone)]
struct Facts {
    id: RequestId,
    deadline: Option<Instant>,
    priority: Priority,
    metadata: BTreeMap<String, String>,
    trace: Option<TraceContext>,
    rank: Option<u32>,
    tried: Option<Tried>,
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
        let facts = Facts {
            id,
            deadline: None,
            priority: Priority::NORMAL,
            metadata: BTreeMap::new(),
            trace: None,
            rank: None,
            tried: None,
        };
        Self { facts: Arc::new(facts), cancellation: Cancellation::new() }
    }

    /// Ends the request at `deadline` at the latest; an earlier deadline already set stays.
    #[must_use]
    pub fn with_deadline(mut self, deadline: Instant) -> Self {
        let earlier = self.deadline().map_or(deadline, |earlier| earlier.min(deadline));
        self.facts_mut().deadline = Some(earlier);
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
        self.facts_mut().priority = priority;
        self
    }

    /// Adds a metadata pair that travels with the request.
    #[must_use]
    pub fn with_metadata(mut self, key: impl Into<String>, value: impl Into<String>) -> Self {
        self.facts_mut().metadata.insert(key.into(), value.into());
        self
    }

    /// Places the request in a distributed trace.
    #[must_use]
    pub fn with_trace(mut self, trace: TraceContext) -> Self {
        self.facts_mut().trace = Some(trace);
        self
    }

    /// Says which data-parallel rank of the instance the request is for, or that any will do.
    ///
    /// It is meant for one hop: a [`Client`](crate::Client) that picks the instance says the rank
    /// of its [`Pick`](crate::Pick), or none, whatever was here before. Whoever calls one given
    /// instance ([`Client::direct`](crate::Client::direct)) says it itself.
    #[must_use]
    pub fn with_rank(mut self, rank: impl Into<Option<u32>>) -> Self {
        let rank = rank.into();
        if self.facts.rank != rank {
            self.facts_mut().rank = rank;
        }
        self
    }

    /// Returns a context whose attempts at this request share what they tried: a
    /// [`Client`](crate::Client) notes the instance it asks, and asks another one for the next
    /// attempt if there is one. Where attempts are shared already, by a layer further out, they
    /// stay shared with it.
    #[must_use]
    pub fn with_attempts(mut self) -> Self {
        if self.facts.tried.is_none() {
            self.facts_mut().tried = Some(Tried::default());
        }
        self
    }

    /// Returns a context for a part of this request: same id, deadline, priority, metadata and
    /// rank, cancelled with this one, and cancellable on its own.
    #[must_use]
    pub fn child(&self) -> Self {
        self.below([Some(&self.cancellation), None])
    }

    /// Returns a [child](Self::child) that is also cancelled with `other`.
    pub(crate) fn child_also_of(&self, other: &Arc<Cancellation>) -> Self {
        self.below([Some(&self.cancellation), Some(other)])
    }

    fn below(&self, parents: [Option<&Arc<Cancellation>>; 2]) -> Self {
        let cancellation = Cancellation::child_of(parents);
        Self { facts: Arc::clone(&self.facts), cancellation }
    }

    fn facts_mut(&mut self) -> &mut Facts {
        Arc::make_mut(&mut self.facts)
    }

    /// Returns the id of the request.
    pub fn id(&self) -> &RequestId {
        &self.facts.id
    }

    /// Returns when the request must have ended.
    pub fn deadline(&self) -> Option<Instant> {
        self.facts.deadline
    }

    /// Returns how much time is left; zero once the deadline has passed, `None` without one.
    pub fn remaining(&self) -> Option<Duration> {
        self.deadline().map(|deadline| deadline.saturating_duration_since(SystemClock.now()))
    }

    /// Returns how urgent the request is.
    pub fn priority(&self) -> Priority {
        self.facts.priority
    }

    /// Returns the metadata that travels with the request.
    pub fn metadata(&self) -> &BTreeMap<String, String> {
        &self.facts.metadata
    }

    /// Returns where the request stands in a distributed trace.
    pub fn trace(&self) -> Option<&TraceContext> {
        self.facts.trace.as_ref()
    }

    /// Returns the data-parallel rank that the request was routed to; `None` if any will do.
    ///
    /// An engine serves the request by the KV cache of that rank. One that has no such rank refuses
    /// it with [`InvalidArgument`](ErrorKind::InvalidArgument): another one would do the work, but
    /// not what the router counts on. An engine of one rank has rank 0.
    pub fn rank(&self) -> Option<u32> {
        self.facts.rank
    }

    /// Returns the instances that attempts at this request have asked so far.
    pub fn tried(&self) -> Vec<InstanceId> {
        self.facts.tried.as_ref().map_or_else(Vec::new, |tried| {
            tried.0.lock().unwrap_or_else(PoisonError::into_inner).clone()
        })
    }

    /// Notes that `instance` is asked, if the attempts of this request are noted.
    pub fn note_tried(&self, instance: InstanceId) {
        if let Some(tried) = &self.facts.tried {
            tried.0.lock().unwrap_or_else(PoisonError::into_inner).push(instance);
        }
    }

    /// Asks for an early, orderly end of the answer.
    pub fn stop(&self) {
        self.cancellation.raise(Level::Stopped);
    }

    /// Ends the request at once.
    pub fn kill(&self) {
        self.cancellation.raise(Level::Killed);
    }

    /// Tells whether the answer should end after the current item.
    pub fn is_stopped(&self) -> bool {
        self.cancellation.has_reached(Level::Stopped)
    }

    /// Tells whether the request is over.
    pub fn is_killed(&self) -> bool {
        self.cancellation.has_reached(Level::Killed)
    }

    /// Completes once an early end is asked for (or the request is killed).
    ///
    /// # Cancel safety
    /// Cancel safe.
    pub async fn stopped(&self) {
        Reached::new(&self.cancellation, Level::Stopped).await;
    }

    /// Completes once the request is killed.
    ///
    /// # Cancel safety
    /// Cancel safe.
    pub async fn killed(&self) {
        Reached::new(&self.cancellation, Level::Killed).await;
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
            match self.deadline() {
                Some(deadline) => tokio::time::sleep_until(deadline.into()).await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            biased;
            // First: work that is done at once costs no look at the clock and no listener.
            result = work => result,
            () = self.killed() => Err(self.cancelled_error()),
            () = deadline => Err(self.deadline_error()),
        }
    }

    /// Has `waker` woken when an end is asked for and when the request is killed, also if that was
    /// before, until the returned guard is dropped.
    #[cfg(any(feature = "tcp", feature = "nats"))]
    pub(crate) fn listen(&self, waker: Waker) -> Listening {
        Listening::wake(&self.cancellation, waker)
    }

    /// Completes once the request is killed.
    pub(crate) fn kill_reached(&self) -> Reached {
        Reached::new(&self.cancellation, Level::Killed)
    }

    pub(super) fn cancelled_error(&self) -> Error {
        Error::new(ErrorKind::Cancelled, format!("request {}", self.id()))
    }

    pub(super) fn deadline_error(&self) -> Error {
        Error::new(ErrorKind::DeadlineExceeded, format!("request {}", self.id()))
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
            .field("id", self.id())
            .field("deadline", &self.deadline())
            .field("priority", &self.priority())
            .field("rank", &self.rank())
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
    fn a_rank_goes_on_to_parts_of_the_request_until_another_one_or_none_is_said() {
        let ctx = Context::new().with_rank(3);
        assert_eq!(ctx.child().rank(), Some(3));
        assert_eq!(ctx.clone().with_rank(0).rank(), Some(0));
        assert_eq!(ctx.with_rank(None).rank(), None);
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
