use std::collections::VecDeque;
use std::sync::Weak;

use bytes::Bytes;
use tokio::sync::oneshot;
use tokio::time::Instant;

use super::job::{Flight, Job};
use crate::error::Result;

/// What waits for the lanes to a peer, and how these are.
#[derive(Default)]
pub(super) struct Queue {
    /// By priority.
    pub(super) works: [VecDeque<Work>; 3],
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

    pub(super) fn drain(&mut self) -> Vec<Work> {
        self.works.iter_mut().flat_map(|works| works.drain(..)).collect()
    }

    /// Takes what is most urgent; jobs of which more is left go to the end of their line.
    pub(super) fn next(&mut self) -> Option<Next> {
        for works in self.works.iter_mut().rev() {
            while let Some(work) = works.pop_front() {
                match work {
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
        None
    }
}
