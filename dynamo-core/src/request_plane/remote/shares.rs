use std::collections::HashMap;
use std::sync::{Arc, Mutex};

use super::lock;
use crate::error::{Error, Result};

/// The requests that a server takes at once, shared out among its connections.
///
/// Each has as many as the others. Those that run go on when a share shrinks, so that there may be
/// more for as long as they take; and each connection has one at least.
pub(crate) struct Shares {
    requests_max: u32,
    members: Mutex<Members>,
}

#[derive(Default)]
struct Members {
    tell: HashMap<u64, Box<dyn Fn(u32) + Send>>,
    next: u64,
    /// What all of them were told last.
    share: u32,
}

/// Has a share until it is dropped.
pub(crate) struct Share {
    shares: Arc<Shares>,
    id: u64,
}

impl Shares {
    /// Fails with [`InvalidArgument`](crate::ErrorKind::InvalidArgument) if there is nothing to
    /// share.
    pub(crate) fn new(requests_max: u32) -> Result<Arc<Self>> {
        if requests_max == 0 {
            return Err(Error::invalid("requests_max of 0 lets no request in"));
        }
        Ok(Arc::new(Self { requests_max, members: Mutex::default() }))
    }

    /// Takes part in the sharing: `tell` is told the share, at once and whenever it changes. It
    /// must neither wait nor come back.
    pub(crate) fn join(self: &Arc<Self>, tell: impl Fn(u32) + Send + 'static) -> Share {
        let mut members = lock(&self.members);
        let id = members.next;
        members.next += 1;
        members.tell.insert(id, Box::new(tell));
        if !members.share_out(self.requests_max)
            && let Some(tell) = members.tell.get(&id)
        {
            tell(members.share);
        }
        Share { shares: Arc::clone(self), id }
    }
}

impl Drop for Share {
    fn drop(&mut self) {
        let mut members = lock(&self.shares.members);
        let gone = members.tell.remove(&self.id);
        members.share_out(self.shares.requests_max);
        drop(members);
        // What it holds may come back when it is dropped: not under the lock.
        drop(gone);
    }
}

impl Members {
    /// Tells all of them their share if it has changed; tells whether it has.
    fn share_out(&mut self, requests_max: u32) -> bool {
        let share = share(requests_max, self.tell.len());
        let has_changed = std::mem::replace(&mut self.share, share) != share;
        if has_changed {
            self.tell.values().for_each(|tell| tell(share));
        }
        has_changed
    }
}

/// Returns the share of each of so many connections.
fn share(requests_max: u32, connections: usize) -> u32 {
    let connections = u32::try_from(connections).unwrap_or(u32::MAX).max(1);
    // In steps of an eighth: when a fleet connects, not all are told of each.
    let step = 1u32 << connections.ilog2().saturating_sub(STEPS_LOG2);
    let connections = connections.checked_next_multiple_of(step).unwrap_or(connections);
    (requests_max / connections).max(1)
}

/// By default as many as four connections may run at their own limit; each costs a task.
pub(crate) const REQUESTS_MAX: u32 = 16_384;

/// Of connections between two powers of two, as a power of two.
const STEPS_LOG2: u32 = 3;

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicU32, AtomicUsize, Ordering};

    use super::*;

    #[test]
    fn shares_are_equal_and_no_more_than_there_is_in_all() {
        assert_eq!([1, 2, 3, 4, 15].map(|of| share(100, of)), [100, 50, 33, 25, 6]);
        assert_eq!(
            [0, 1, 16, 17, 18, 1024].map(|of| share(16_384, of)),
            [16_384, 16_384, 1024, 910, 910, 16]
        );
        assert_eq!((share(3, 1000), share(u32::MAX, usize::MAX)), (1, 1));
        for of in 1..2000 {
            let shared = share(1 << 20, of) as usize * of;
            assert!((7 << 17..=1 << 20).contains(&shared), "{shared} among {of}");
        }
    }

    #[test]
    fn everyone_knows_its_share_as_others_come_and_go_and_few_words_are_said() {
        assert!(Shares::new(0).is_err());
        let shares = Shares::new(16_384).unwrap();
        let words = Arc::<AtomicUsize>::default();
        let mut members = Vec::new();
        let check = |members: &Vec<(Share, Arc<AtomicU32>)>| {
            let expected = share(16_384, members.len());
            assert!(members.iter().all(|member| member.1.load(Ordering::Relaxed) == expected));
        };
        let join = |members: &mut Vec<_>| {
            let (told, words) = (Arc::<AtomicU32>::default(), Arc::clone(&words));
            let tell = Arc::clone(&told);
            let share = shares.join(move |share| {
                tell.store(share, Ordering::Relaxed);
                words.fetch_add(1, Ordering::Relaxed);
            });
            members.push((share, told));
        };
        for _ in 0..1000 {
            join(&mut members);
            check(&members);
        }
        // Not one for each pair.
        assert!(words.load(Ordering::Relaxed) < 20 * 1000, "{words:?}");
        while members.len() > 1 {
            members.swap_remove(members.len() / 2);
            check(&members);
        }
        members.clear();
        join(&mut members);
        assert_eq!(members[0].1.load(Ordering::Relaxed), 16_384);
    }
}
