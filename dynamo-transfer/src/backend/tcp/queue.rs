use std::collections::VecDeque;
use std::sync::Weak;

use bytes::Bytes;
use tokio::sync::oneshot;
use tokio::time::Instant;

use super::job::{Flight, Job};
use crate::error::{Error, Result};
use crate::vocabulary::Priority;

/// What waits for the lanes to a peer, and how these are.
#[derive(Default)]
pub(super) struct Queue {
    /// By priority.
    works: [VecDeque<Work>; 3],
    /// How many it holds when it is next looked at for what nobody wants any more.
    sweep_at: usize,
    /// The agent has shut down: nothing more is done.
    pub(super) is_closed: bool,
    pub(super) lanes: usize,
    /// Lanes among them that have nothing to do.
    pub(super) idle: usize,
    pub(super) connected: usize,
    /// Connections in a row that could not be made, and when the next one may be tried.
    pub(super) failures: u32,
    pub(super) retry_at: Option<Instant>,
}

/// What lanes do.
pub(super) enum Work {
    /// Whoever waits for the job keeps it, and each lane that has a part of it.
    Move(Weak<Job>),
    Notify(Notice),
}

impl Work {
    /// Tells whether anybody waits for it.
    fn is_wanted(&self) -> bool {
        match self {
            Self::Move(job) => job.strong_count() > 0,
            Self::Notify(notice) => !notice.settle.is_closed(),
        }
    }

    /// Gives it up; not under the lock of the queue.
    pub(super) fn fail(self, error: &Error) {
        let error = Error::new(error.kind(), error.message());
        match self {
            Self::Move(job) => {
                if let Some(job) = job.upgrade() {
                    job.fail(error);
                }
            }
            Self::Notify(notice) => {
                // Nobody waits for a notification that was dropped.
                let _ = notice.settle.send(Err(error));
            }
        }
    }
}

/// A notification on its way.
pub(super) struct Notice {
    pub(super) payload: Bytes,
    pub(super) settle: oneshot::Sender<Result<()>>,
}

/// What is asked next.
pub(super) enum Next {
    Stripe(Flight),
    Notice(Notice),
}

impl Queue {
    pub(super) fn is_empty(&self) -> bool {
        self.works.iter().all(VecDeque::is_empty)
    }

    pub(super) fn push(&mut self, work: Work, priority: Priority) {
        self.works[priority as usize].push_back(work);
    }

    /// Takes out what nobody waits for any more, whenever twice as much is queued as was wanted the last
    /// time; it is to be dropped outside the lock.
    pub(super) fn sweep(&mut self) -> Vec<Work> {
        let len = |works: &[VecDeque<Work>; 3]| works.iter().map(VecDeque::len).sum::<usize>();
        if len(&self.works) < self.sweep_at.max(SWEPT_MIN) {
            return Vec::new();
        }
        let mut swept = Vec::new();
        for works in &mut self.works {
            let (wanted, unwanted) = works.drain(..).partition::<VecDeque<_>, _>(Work::is_wanted);
            *works = wanted;
            swept.extend(unwanted);
        }
        self.sweep_at = 2 * len(&self.works);
        swept
    }

    pub(super) fn drain(&mut self) -> Vec<Work> {
        self.sweep_at = 0;
        self.works.iter_mut().flat_map(|works| works.drain(..)).collect()
    }

    /// Takes what is most urgent; jobs of which more is left go to the end of their line.
    pub(super) fn next(&mut self) -> Option<Next> {
        for works in self.works.iter_mut().rev() {
            while let Some(work) = works.pop_front() {
                match work {
                    Work::Notify(notice) if notice.settle.is_closed() => {}
                    Work::Notify(notice) => return Some(Next::Notice(notice)),
                    Work::Move(job) => {
                        if let Some((flight, has_more)) = job.upgrade().and_then(|job| job.next()) {
                            if has_more {
                                works.push_back(Work::Move(job));
                            }
                            return Some(Next::Stripe(flight));
                        }
                    }
                }
            }
        }
        self.sweep_at = 0;
        None
    }
}

/// Below, looking costs more than what is kept.
const SWEPT_MIN: usize = 32;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_nobody_waits_for_takes_no_more_room_than_what_somebody_does() {
        let mut queue = Queue::default();
        let mut waiting = Vec::new();
        for round in 1..=10_000 {
            // Given up at once, but for one in a hundred.
            let (settle, outcome) = oneshot::channel();
            let notice = Notice { payload: Bytes::new(), settle };
            queue.push(Work::Notify(notice), Priority::Normal);
            queue.push(Work::Move(Weak::new()), Priority::Low);
            if round % 100 == 0 {
                waiting.push(outcome);
            }
            assert!(queue.sweep().iter().all(|work| !work.is_wanted()));
            let queued = queue.works.iter().map(VecDeque::len).sum::<usize>();
            assert!(queued <= SWEPT_MIN.max(2 * waiting.len()) + 2, "{queued} are queued");
        }
        // In their order.
        for mut outcome in waiting {
            let Some(Next::Notice(notice)) = queue.next() else { unreachable!("it is queued") };
            notice.settle.send(Ok(())).unwrap();
            assert!(outcome.try_recv().unwrap().is_ok());
        }
        assert!(queue.next().is_none() && queue.is_empty());
    }
}
