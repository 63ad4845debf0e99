use dynamo_core::protocol::InstanceId;
use dynamo_core::time::{Clock, SystemClock};
use proptest::prelude::*;

use super::*;

fn worker(id: u64) -> WorkerId {
    WorkerId::new(InstanceId(id))
}

proptest! {
    /// A list in the order of use, of which the front is cut off.
    #[test]
    fn it_remembers_what_the_list_remembers(
        steps in prop::collection::vec((0..3u8, 0..12u64, 0..4u64, 0..6u64), 1..200),
        sessions_max in 1..6usize,
    ) {
        let ttl = Duration::from_secs(20);
        let config = AffinityConfig::default().with_ttl(ttl);
        let config = config.with_sessions_max(NonZeroUsize::new(sessions_max).unwrap());
        let mut affinity = SessionAffinity::new(config);
        let mut list: Vec<(SessionKey, WorkerId, Instant)> = Vec::new();
        let mut now = SystemClock.now();
        for (kind, session, id, seconds) in steps {
            now += Duration::from_secs(seconds);
            let key = SessionKey(session);
            if kind == 0 {
                let is_there = |worker: WorkerId| worker.instance.0 != id;
                let found = affinity.find(key, now, is_there);
                let known = list.iter().position(|(known, ..)| *known == key);
                let known = known.map(|at| (at, list[at].1, list[at].2));
                let is_good = |(_, worker, used): &(usize, WorkerId, Instant)| {
                    now - *used < ttl && is_there(*worker)
                };
                prop_assert_eq!(found, known.filter(is_good).map(|(_, worker, _)| worker));
                if let (None, Some((at, ..))) = (found, known) {
                    list.remove(at);
                }
            } else {
                affinity.bind(key, worker(id), now);
                let is_known = list.iter().any(|(known, ..)| *known == key);
                list.retain(|(known, ..)| *known != key);
                for _ in 0..2 {
                    if !is_known && list.first().is_some_and(|(.., used)| now - *used >= ttl) {
                        list.remove(0);
                    }
                }
                if list.len() == sessions_max {
                    list.remove(0);
                }
                list.push((key, worker(id), now));
            }
            let mut kept = Vec::new();
            let mut place = affinity.oldest;
            while let Some(session) = affinity.sessions.get(place) {
                kept.push((session.key, session.worker, session.used));
                prop_assert_eq!(affinity.places.get(&session.key), Some(&place));
                place = session.newer;
            }
            prop_assert_eq!(&kept, &list);
            prop_assert_eq!((affinity.len(), affinity.places.len()), (list.len(), list.len()));
        }
    }
}

#[test]
fn sessions_of_different_tenants_are_different_ones() {
    let key = SessionKey::new("a", "1");
    assert_eq!(key, SessionKey::new("a", "1"));
    assert_ne!(key, SessionKey::new("b", "1"));
    assert_ne!(SessionKey::new("ab", "c"), SessionKey::new("a", "bc"));
}
