//! One endpoint's instances: a listing, then a watch from the revision behind it.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use etcd_client::{Client, EventType, GetOptions, WatchOptions, WatchResponse};
use tokio::sync::watch;
use tokio::time::Instant;

use super::{EtcdConfig, answered, back_off, jitter, key};
use crate::discovery::Instance;
use crate::error::{Error, ErrorKind, Result};
use crate::protocol::InstanceId;

/// What is known of an endpoint.
#[derive(Debug, Clone, Default)]
pub(super) struct Known {
    /// The instances; `None` before the first listing.
    pub(super) instances: Option<Instances>,
    /// etcd does not answer.
    pub(super) is_degraded: bool,
}

type Instances = BTreeMap<InstanceId, Instance>;

/// Follows the keys under `prefix` for good.
pub(super) async fn follow(config: Arc<EtcdConfig>, prefix: String, known: watch::Sender<Known>) {
    let mut roster = Roster::new(config.ttl + GRACE);
    let mut tries = 0;
    loop {
        let followed = follow_once(&config, &prefix, &known, &mut roster, &mut tries);
        if let Err(error) = Box::pin(followed).await {
            tracing::warn!(%error, prefix, tries, "etcd is away; what is known stays");
            known.send_if_modified(|known| !std::mem::replace(&mut known.is_degraded, true));
            tries += 1;
            tokio::time::sleep(back_off(tries)).await;
        }
    }
}

/// Lists and watches; returns when it is time to list again.
async fn follow_once(
    config: &EtcdConfig,
    prefix: &str,
    known: &watch::Sender<Known>,
    roster: &mut Roster,
    tries: &mut u32,
) -> Result<()> {
    let mut client = config.connect().await?;
    let (listed, revision) = list(&mut client, config, prefix).await?;
    *tries = 0;
    roster.listed(listed, Instant::now());
    publish(known, roster);

    let from = WatchOptions::new().with_prefix().with_start_revision(revision + 1);
    let mut events = answered(client.watch(prefix, Some(from))).await?;
    let list_again = Instant::now() + RECONCILE.mul_f64(0.5 + 0.5 * jitter());
    loop {
        let wake = roster.next_expiry().map_or(list_again, |at| at.min(list_again));
        let message = tokio::select! {
            message = events.message() => message,
            () = tokio::time::sleep_until(wake) => {
                roster.expire(Instant::now());
                publish(known, roster);
                if Instant::now() >= list_again {
                    // A watch that has silently lost something is mended by the next listing.
                    return Ok(());
                }
                continue;
            }
        };
        let message = message
            .map_err(|error| Error::new(ErrorKind::Unavailable, "watch").with_source(error))?;
        let message = message
            .ok_or_else(|| Error::new(ErrorKind::Unavailable, "etcd has closed the watch"))?;
        if message.canceled() || message.compact_revision() > 0 {
            // The past that was asked for is gone: the next listing has the present.
            tracing::info!(reason = message.cancel_reason(), "etcd has cancelled a watch");
            return Ok(());
        }
        apply(config, &message, roster);
        publish(known, roster);
    }
}

async fn list(client: &mut Client, config: &EtcdConfig, prefix: &str) -> Result<(Instances, i64)> {
    let options = GetOptions::new().with_prefix();
    let found = answered(client.get(prefix, Some(options))).await?;
    let revision = found.header().map_or(0, etcd_client::ResponseHeader::revision);
    let mut instances = BTreeMap::new();
    for kv in found.kvs() {
        match key::decode(&config.root, kv.key(), kv.value()) {
            Ok(instance) => {
                instances.insert(instance.id, instance);
            }
            Err(_) if kv.value() == key::LEAVING => {}
            Err(error) => tracing::warn!(%error, "passed over"),
        }
    }
    Ok((instances, revision))
}

/// Folds a message into what is known.
fn apply(config: &EtcdConfig, message: &WatchResponse, roster: &mut Roster) {
    for event in message.events() {
        let Some(kv) = event.kv() else { continue };
        match event.event_type() {
            EventType::Delete => roster.missing(&config.root, kv.key(), Instant::now()),
            EventType::Put if kv.value() == key::LEAVING => roster.left(&config.root, kv.key()),
            EventType::Put => match key::decode(&config.root, kv.key(), kv.value()) {
                Ok(instance) => roster.put(instance),
                // What was known of the key stays.
                Err(error) => tracing::warn!(%error, "passed over"),
            },
        }
    }
}

fn publish(known: &watch::Sender<Known>, roster: &Roster) {
    known.send_if_modified(|known| {
        let instances = Some(roster.instances());
        let is_news = known.is_degraded || known.instances != instances;
        *known = Known { instances, is_degraded: false };
        is_news
    });
}

/// Who is there, and who may be; pure.
///
/// An instance whose key has gone without a word has lost its lease: because its process has died,
/// or because etcd was away, was wiped, or came back before the instance did. It is kept for a
/// while, in which a living one registers again.
#[derive(Debug)]
struct Roster {
    grace: Duration,
    entries: BTreeMap<InstanceId, Entry>,
}

#[derive(Debug)]
struct Entry {
    instance: Instance,
    missing_since: Option<Instant>,
}

impl Roster {
    fn new(grace: Duration) -> Self {
        Self { grace, entries: BTreeMap::new() }
    }

    fn put(&mut self, instance: Instance) {
        self.entries.insert(instance.id, Entry { instance, missing_since: None });
    }

    /// Takes in a listing: whoever is not in it is missing from now on.
    fn listed(&mut self, listed: Instances, now: Instant) {
        for (id, entry) in &mut self.entries {
            if !listed.contains_key(id) {
                entry.missing_since = Some(now);
            }
        }
        listed.into_values().for_each(|instance| self.put(instance));
    }

    /// Notes that a key is gone without a word.
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
    fn expire(&mut self, now: Instant) {
        let grace = self.grace;
        let is_gone = |since: Instant| now.saturating_duration_since(since) >= grace;
        self.entries.retain(|_, entry| !entry.missing_since.is_some_and(is_gone));
    }

    fn next_expiry(&self) -> Option<Instant> {
        let since = self.entries.values().filter_map(|entry| entry.missing_since).min();
        since.map(|since| since + self.grace)
    }

    fn instances(&self) -> Instances {
        self.entries.iter().map(|(id, entry)| (*id, entry.instance.clone())).collect()
    }
}

/// Time to come back: a reconnect with its back-off, and a registration.
const GRACE: Duration = Duration::from_secs(2);

/// How often to list although nothing seems to be wrong.
const RECONCILE: Duration = Duration::from_secs(60);

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

    #[tokio::test(start_paused = true)]
    async fn who_leaves_is_gone_at_once_and_who_is_missing_has_time_to_come_back() {
        let (start, second) = (Instant::now(), Duration::from_secs(1));
        let mut roster = Roster::new(4 * second);
        roster.listed(fleet(0..4), start);
        let key = |id| key::key("/d", &instance(id)).into_bytes();
        roster.left("/d", &key(0));
        roster.missing("/d", &key(1), start);
        assert_eq!(ids(&roster), [1, 2, 3]);
        // etcd is wiped, and one of them registers again.
        roster.listed(fleet(0..0), start + second);
        roster.put(instance(2));
        assert_eq!(
            roster.next_expiry(),
            Some(start + 5 * second),
            "a listing starts the time anew"
        );
        roster.expire(start + 4 * second);
        assert_eq!(ids(&roster), [1, 2, 3]);
        roster.expire(start + 5 * second);
        assert_eq!(ids(&roster), [2]);
        assert_eq!(roster.next_expiry(), None);
    }
}
