//! Who is there, and who may be; pure.

use std::collections::BTreeMap;
use std::time::Duration;

use etcd_client::{EventType, WatchResponse};
use tokio::time::Instant;

use super::key;
use crate::discovery::Instance;
use crate::discovery::known::Instances;
use crate::protocol::InstanceId;

/// The instances of an endpoint by what etcd has said of them.
///
/// An instance whose key has gone without a word has lost its lease: because its process has died,
/// or because etcd was away, was wiped, or came back before the instance did. It is kept for a
/// while, in which a living one registers again. Then it is absent: that etcd has not heard of it is
/// no proof that nobody else does.
#[derive(Debug)]
pub(super) struct Roster {
    grace: Duration,
    entries: BTreeMap<InstanceId, Seen>,
    /// How often instances were dropped for absence.
    pub(super) absences: u64,
}

#[derive(Debug)]
struct Seen {
    instance: Instance,
    missing_since: Option<Instant>,
}

impl Roster {
    pub(super) fn new(grace: Duration) -> Self {
        Self { grace, entries: BTreeMap::new(), absences: 0 }
    }

    fn put(&mut self, instance: Instance) {
        self.entries.insert(instance.id, Seen { instance, missing_since: None });
    }

    /// Takes in a listing: whoever is not in it is missing from now on. After a time in which etcd
    /// was away, so is who was missing before: it could not come back.
    pub(super) fn listed(&mut self, listed: Instances, was_away: bool, now: Instant) {
        for (id, entry) in &mut self.entries {
            if !listed.contains_key(id) {
                let since = entry.missing_since.get_or_insert(now);
                if was_away {
                    *since = now;
                }
            }
        }
        listed.into_values().for_each(|instance| self.put(instance));
    }

    /// Takes in what a watch has said.
    pub(super) fn told(&mut self, root: &str, message: &WatchResponse, now: Instant) {
        for event in message.events() {
            let Some(kv) = event.kv() else { continue };
            match event.event_type() {
                EventType::Delete => self.missing(root, kv.key(), now),
                EventType::Put if kv.value() == key::LEAVING => self.left(root, kv.key()),
                EventType::Put => match key::decode(root, kv.key(), kv.value()) {
                    Ok(instance) => self.put(instance),
                    // What was known of the key stays.
                    Err(error) => tracing::warn!(%error, "passed over"),
                },
            }
        }
    }

    /// Notes that a key is gone without a word of its instance.
    fn missing(&mut self, root: &str, at: &[u8], now: Instant) {
        for entry in self.entries.values_mut() {
            if key::key(root, &entry.instance).as_bytes() == at {
                entry.missing_since.get_or_insert(now);
            }
        }
    }

    /// Notes that an instance has said that it leaves.
    fn left(&mut self, root: &str, at: &[u8]) {
        self.entries.retain(|_, entry| key::key(root, &entry.instance).as_bytes() != at);
    }

    /// Gives up who has been missing for too long.
    pub(super) fn expire(&mut self, now: Instant) {
        let (grace, before) = (self.grace, self.entries.len());
        let is_over = |since: Instant| now.saturating_duration_since(since) >= grace;
        self.entries.retain(|_, entry| !entry.missing_since.is_some_and(is_over));
        self.absences += u64::from(self.entries.len() < before);
    }

    pub(super) fn next_expiry(&self) -> Option<Instant> {
        let since = self.entries.values().filter_map(|entry| entry.missing_since).min();
        since.map(|since| since + self.grace)
    }

    pub(super) fn instances(&self) -> Instances {
        self.entries.iter().map(|(id, entry)| (*id, entry.instance.clone())).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::discovery::Address;
    use crate::name::{EndpointPath, Name};

    fn instance(id: u64) -> Instance {
        let name = |name| Name::new(name).unwrap();
        Instance {
            id: InstanceId(id),
            incarnation: 0,
            endpoint: EndpointPath {
                namespace: name("n"),
                component: name("c"),
                endpoint: name("e"),
            },
            address: Address(String::new()),
            labels: BTreeMap::new(),
        }
    }

    fn fleet(ids: std::ops::Range<u64>) -> Instances {
        ids.map(|id| (InstanceId(id), instance(id))).collect()
    }

    fn ids(roster: &Roster) -> Vec<u64> {
        roster.instances().keys().map(|id| id.0).collect()
    }

    fn key(id: u64) -> Vec<u8> {
        key::key("/d", &instance(id)).into_bytes()
    }

    #[tokio::test(start_paused = true)]
    async fn who_leaves_is_gone_at_once_and_who_is_missing_has_time_to_come_back() {
        let (start, second) = (Instant::now(), Duration::from_secs(1));
        let mut roster = Roster::new(4 * second);
        roster.listed(fleet(0..4), false, start);
        roster.left("/d", &key(0));
        roster.missing("/d", &key(1), start);
        assert_eq!(ids(&roster), [1, 2, 3]);
        // etcd is wiped, and one of them registers again.
        roster.listed(fleet(0..0), true, start + second);
        roster.put(instance(2));
        let anew = start + 5 * second;
        assert_eq!(roster.next_expiry(), Some(anew), "the time starts with etcd's return");
        roster.expire(start + 4 * second);
        assert_eq!(ids(&roster), [1, 2, 3]);
        roster.expire(anew);
        assert_eq!(ids(&roster), [2]);
        assert_eq!(roster.next_expiry(), None);
    }

    #[tokio::test(start_paused = true)]
    async fn a_key_that_goes_or_is_not_found_is_an_absence() {
        let (start, second) = (Instant::now(), Duration::from_secs(1));
        let mut roster = Roster::new(4 * second);
        roster.listed(fleet(0..3), false, start);
        roster.missing("/d", &key(0), start);
        roster.expire(start + 4 * second);
        assert_eq!((ids(&roster), roster.absences), (vec![1, 2], 1));
        // Listings of a healthy etcd put nothing off.
        for seconds in 5..9 {
            roster.listed(fleet(2..3), false, start + seconds * second);
            roster.expire(start + seconds * second);
            assert_eq!(ids(&roster), [1, 2]);
        }
        roster.expire(start + 9 * second);
        assert_eq!((ids(&roster), roster.absences), (vec![2], 2));
    }
}
