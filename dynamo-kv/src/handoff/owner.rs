use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

use bytes::Bytes;
use dynamo_core::{Error, ErrorKind, Result};
use dynamo_transfer::{Agent, RegisteredRegion};
use tokio::sync::{oneshot, watch};
use tokio::time::Instant;

use super::hold::{Holds, Terms, Time, Verdict};
use super::message::{Attempt, Message, StageId};
use super::staged::{Segment, Settlement};
use super::stats::{Counters, HandoffStats, StageOutcome};
use crate::random::random;

/// What this worker has staged: [`Holds`], with the regions that they grant.
pub(crate) struct Owner {
    key: [u8; 32],
    numbers: AtomicU64,
    began: Instant,
    /// `None` once the hand-off has ended.
    holds: Mutex<Option<Holds<Held>>>,
    /// Wakes whoever ends holds when one with an earlier end arrives.
    pub(super) changed: watch::Sender<()>,
    pub(super) counters: Counters,
}

struct Held {
    segments: Vec<Segment>,
    /// What the attempt that has reserved the blocks was given. Dropping it revokes it.
    region: Option<(RegisteredRegion<Segment>, Bytes)>,
    settle: oneshot::Sender<Settlement>,
}

impl Owner {
    pub(super) fn new(terms: Terms) -> Result<Self> {
        Ok(Self {
            key: random()?,
            numbers: AtomicU64::new(0),
            began: Instant::now(),
            holds: Mutex::new(Some(Holds::new(terms))),
            changed: watch::Sender::default(),
            counters: Counters::default(),
        })
    }

    fn lock(&self) -> MutexGuard<'_, Option<Holds<Held>>> {
        self.holds.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Returns the time that its machine counts by.
    pub(super) fn now(&self) -> Time {
        self.began.elapsed()
    }

    /// Returns when that is.
    pub(super) fn at(&self, time: Time) -> Instant {
        self.began + time
    }

    /// Holds blocks from now on.
    pub(super) fn stage(
        &self,
        segments: Vec<Segment>,
    ) -> Result<(StageId, oneshot::Receiver<Settlement>)> {
        let id = StageId::new(&self.key, self.numbers.fetch_add(1, Ordering::Relaxed));
        let (settle, settled) = oneshot::channel();
        let held = Held { segments, region: None, settle };
        match &mut *self.lock() {
            Some(holds) => holds.stage(id, held, self.now()),
            None => return Err(Error::new(ErrorKind::Closed, "hand-off has shut down")),
        }
        self.changed.send_replace(());
        Ok((id, settled))
    }

    /// Does what a puller asks; returns the answer, if there is one, and to whom.
    ///
    /// Who asks for what was never staged here is no peer of ours, and hears nothing.
    pub(super) fn asked(&self, agent: &Agent, message: Message) -> Option<(Bytes, Message)> {
        match message {
            Message::Claim { stage, attempt, moved, from } if stage.is_of(&self.key) => {
                Some((from, self.claimed(agent, stage, attempt, moved)?))
            }
            Message::Done { stage, attempt, from } if stage.is_of(&self.key) => {
                let (is_theirs, held) = self.lock().as_mut()?.done(stage, attempt, self.now());
                self.end(held, StageOutcome::Pulled);
                let settled = Message::Settled { attempt };
                Some((from, if is_theirs { settled } else { Message::Over { attempt } }))
            }
            Message::Release { stage, attempt } => {
                let released = self.lock().as_mut()?.release(stage, attempt)?.region.take();
                drop(released);
                None
            }
            _ => None,
        }
    }

    fn claimed(
        &self,
        agent: &Agent,
        stage: StageId,
        attempt: Attempt,
        moved: u64,
    ) -> Option<Message> {
        let (other, segments) = match self.lock().as_mut()?.claim(stage, attempt, moved, self.now())
        {
            Verdict::Taken { left } => return Some(Message::Taken { attempt, left }),
            Verdict::Pulled => return Some(Message::Settled { attempt }),
            Verdict::Over => return Some(Message::Over { attempt }),
            Verdict::Granted { held, is_new } => {
                if let (false, Some((_, region))) = (is_new, &held.region) {
                    return Some(Message::Granted { attempt, region: region.clone() });
                }
                (held.region.take(), held.segments.clone())
            }
        };
        // Outside of the lock: this takes the locks of table and pool.
        drop(other);
        let granted = grant(agent, segments);
        let granted = granted.inspect_err(|error| tracing::warn!(%error, "hold not granted"));
        let (region, metadata) = granted.ok()?;
        let mut region = Some((region, metadata.clone()));
        // It may have ended meanwhile: then the region ends here, outside of the lock again.
        let is_kept = self.lock().as_mut().is_some_and(|holds| {
            let held = holds.reserved(stage, attempt);
            held.map(|held| held.region = region.take()).is_some()
        });
        is_kept.then_some(Message::Granted { attempt, region: metadata })
    }

    /// Ends a hold whose stager has no use for it any more.
    pub(super) fn drop_hold(&self, id: StageId) {
        let held = self.lock().as_mut().and_then(|holds| holds.end(id));
        self.end(held, StageOutcome::Dropped);
    }

    /// Ends every hold whose time is over; returns when the next one's is.
    pub(super) fn expire(&self) -> Option<Instant> {
        let mut locked = self.lock();
        let holds = locked.as_mut()?;
        let overdue = holds.expire(self.now());
        let next = holds.next_end();
        drop(locked);
        overdue.into_iter().for_each(|held| self.end(Some(held), StageOutcome::Expired));
        next.map(|time| self.at(time))
    }

    /// Ends every hold, and refuses others.
    pub(super) fn close(&self) {
        let Some(mut holds) = self.lock().take() else { return };
        let all = holds.expire(Time::MAX);
        all.into_iter().for_each(|held| self.end(Some(held), StageOutcome::Dropped));
    }

    /// Returns the number of blocks that are held.
    pub(super) fn staged_blocks(&self) -> usize {
        self.lock().iter().flat_map(Holds::iter).map(|held| held.segments.len()).sum()
    }

    /// Returns what the worker's hand-offs have come to so far.
    pub(crate) fn stats(&self) -> HandoffStats {
        self.counters.read(self.staged_blocks())
    }

    /// Gives blocks up before anyone is told.
    fn end(&self, held: Option<Held>, outcome: StageOutcome) {
        let Some(Held { segments, region, settle }) = held else { return };
        drop((region, segments));
        self.counters.stage_ended(outcome);
        let is_pulled = outcome == StageOutcome::Pulled;
        // The stager may not be listening.
        let _ = settle.send(if is_pulled { Settlement::Pulled } else { Settlement::Expired });
    }
}

fn grant(
    agent: &Agent,
    segments: Vec<Segment>,
) -> dynamo_transfer::Result<(RegisteredRegion<Segment>, Bytes)> {
    let region = agent.register(segments)?;
    let metadata = agent.metadata([region.grant().read_only()])?;
    Ok((region, metadata))
}
