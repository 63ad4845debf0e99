//! Peers that could not be reached over UCX: only the first transfer to one waits to find out.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;

use crate::peer::PeerAddress;

#[derive(Default)]
pub(super) struct Absences(HashMap<Arc<PeerAddress>, Absence>);

struct Absence {
    failures: u32,
    retry_at: Instant,
}

impl Absences {
    /// Takes note that a peer could not be reached.
    pub(super) fn note(&mut self, peer: &Arc<PeerAddress>, now: Instant) {
        if self.0.len() >= ABSENCES_MAX {
            self.0.retain(|_, absence| absence.retry_at > now);
        }
        let failures = self.0.get(peer).map_or(0, |absence| absence.failures);
        let retry_at = now + BACK_OFF * (1 << failures.min(DOUBLINGS_MAX));
        if self.0.len() < ABSENCES_MAX || failures > 0 {
            let failures = failures.saturating_add(1);
            self.0.insert(Arc::clone(peer), Absence { failures, retry_at });
        }
    }

    /// Takes note that a peer has answered.
    pub(super) fn forget(&mut self, peer: &PeerAddress) {
        self.0.remove(peer);
    }

    /// Tells whether it was not there when it was last looked for.
    pub(super) fn has(&self, peer: &PeerAddress) -> bool {
        self.0.contains_key(peer)
    }

    /// Tells whether it is too soon to look for it again.
    pub(super) fn is_recent(&self, peer: &PeerAddress, now: Instant) -> bool {
        self.0.get(peer).is_some_and(|absence| now < absence.retry_at)
    }
}

/// As many as links at an owner.
const ABSENCES_MAX: usize = 1024;

/// How soon a peer is looked for again; twice as long each time, at most 16 s.
const BACK_OFF: Duration = Duration::from_secs(2);
const DOUBLINGS_MAX: u32 = 3;

#[cfg(test)]
mod tests {
    use super::*;

    fn peer(number: u64) -> Arc<PeerAddress> {
        let (name, incarnation) = ("p".to_owned(), number);
        Arc::new(PeerAddress { name, incarnation, fabric: None, tcp: None, shm: None, ucx: None })
    }

    #[test]
    fn a_peer_that_stays_away_is_looked_for_less_and_less_often_until_it_answers() {
        let (mut absences, away, mut now) = (Absences::default(), peer(0), Instant::now());
        assert!(!absences.has(&away));
        for seconds in [2, 4, 8, 16, 16] {
            absences.note(&away, now);
            now += Duration::from_secs(seconds);
            assert!(absences.is_recent(&away, now - Duration::from_millis(1)));
            assert!(!absences.is_recent(&away, now) && absences.has(&away));
        }
        absences.forget(&away);
        assert!(!absences.has(&away) && !absences.is_recent(&away, now));
    }

    #[test]
    fn only_so_many_are_remembered() {
        let (mut absences, now) = (Absences::default(), Instant::now());
        (0..5000).for_each(|number| absences.note(&peer(number), now));
        assert_eq!(absences.0.len(), ABSENCES_MAX);
        let later = now + BACK_OFF;
        absences.note(&peer(5000), later);
        assert!(absences.0.len() == 1 && absences.has(&peer(5000)));
    }
}
