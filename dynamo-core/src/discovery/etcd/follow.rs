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
    pub(super) instances: Option<BTreeMap<InstanceId, Instance>>,
    /// etcd does not answer, or says what cannot be believed yet.
    pub(super) is_degraded: bool,
}

/// Follows the keys under `prefix` for good.
pub(super) async fn follow(config: Arc<EtcdConfig>, prefix: String, known: watch::Sender<Known>) {
    let mut doubt = Doubt { hold: config.ttl * 2, since: None };
    let mut tries = 0;
    loop {
        let followed = follow_once(&config, &prefix, &known, &mut doubt, &mut tries);
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
    doubt: &mut Doubt,
    tries: &mut u32,
) -> Result<()> {
    let mut client = config.connect().await?;
    let (mut instances, revision) = list(&mut client, config, prefix).await?;
    *tries = 0;
    let before = known.borrow().instances.clone().unwrap_or_default();
    if doubt.holds(&before, &instances, Instant::now()) {
        known.send_if_modified(|known| !std::mem::replace(&mut known.is_degraded, true));
        // What is missing registers again soon, if it lives.
        tokio::time::sleep(AGAIN).await;
        return Ok(());
    }
    publish(known, &instances);

    let from = WatchOptions::new().with_prefix().with_start_revision(revision + 1);
    let mut events = answered(client.watch(prefix, Some(from))).await?;
    let list_again = Instant::now() + RECONCILE.mul_f64(0.5 + 0.5 * jitter());
    loop {
        let message = tokio::select! {
            message = events.message() => message,
            // A watch that has silently lost something is mended by the next listing.
            () = tokio::time::sleep_until(list_again) => return Ok(()),
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
        if apply(config, &message, &mut instances) {
            publish(known, &instances);
        }
    }
}

async fn list(
    client: &mut Client,
    config: &EtcdConfig,
    prefix: &str,
) -> Result<(BTreeMap<InstanceId, Instance>, i64)> {
    let options = GetOptions::new().with_prefix();
    let found = answered(client.get(prefix, Some(options))).await?;
    let revision = found.header().map_or(0, etcd_client::ResponseHeader::revision);
    let mut instances = BTreeMap::new();
    for kv in found.kvs() {
        match key::decode(&config.root, kv.key(), kv.value()) {
            Ok(instance) => {
                instances.insert(instance.id, instance);
            }
            Err(error) => tracing::warn!(%error, "passed over"),
        }
    }
    Ok((instances, revision))
}

/// Folds a message into what is known; tells whether that changed it.
fn apply(
    config: &EtcdConfig,
    message: &WatchResponse,
    instances: &mut BTreeMap<InstanceId, Instance>,
) -> bool {
    for event in message.events() {
        let Some(kv) = event.kv() else { continue };
        match event.event_type() {
            EventType::Put => match key::decode(&config.root, kv.key(), kv.value()) {
                Ok(instance) => {
                    instances.insert(instance.id, instance);
                }
                // What was known of the key stays.
                Err(error) => tracing::warn!(%error, "passed over"),
            },
            EventType::Delete => {
                instances.retain(|_, known| key::key(&config.root, known).as_bytes() != kv.key());
            }
        }
    }
    !message.events().is_empty()
}

fn publish(known: &watch::Sender<Known>, instances: &BTreeMap<InstanceId, Instance>) {
    known.send_if_modified(|known| {
        let is_news = known.is_degraded || known.instances.as_ref() != Some(instances);
        *known = Known { instances: Some(instances.clone()), is_degraded: false };
        is_news
    });
}

/// Does not believe at once that most of a fleet is gone: etcd may have lost its data, or come back
/// before those that register with it.
struct Doubt {
    hold: Duration,
    since: Option<Instant>,
}

impl Doubt {
    fn holds(
        &mut self,
        before: &BTreeMap<InstanceId, Instance>,
        now: &BTreeMap<InstanceId, Instance>,
        at: Instant,
    ) -> bool {
        let missing = before.keys().filter(|id| !now.contains_key(id)).count();
        if missing * 2 <= before.len() {
            self.since = None;
            return false;
        }
        let since = *self.since.get_or_insert(at);
        let holds = at.saturating_duration_since(since) < self.hold;
        if !holds {
            self.since = None;
        }
        holds
    }
}

/// How often to list although nothing seems to be wrong.
const RECONCILE: Duration = Duration::from_secs(60);

/// How long to wait before looking again for what should come back.
const AGAIN: Duration = Duration::from_millis(500);

#[cfg(test)]
mod tests {
    use super::*;
    use crate::discovery::Address;
    use crate::name::{EndpointPath, Name};

    fn fleet(ids: std::ops::Range<u64>) -> BTreeMap<InstanceId, Instance> {
        let name = |name| Name::new(name).unwrap();
        let endpoint =
            EndpointPath { namespace: name("n"), component: name("c"), endpoint: name("e") };
        ids.map(|id| {
            let instance = Instance {
                id: InstanceId(id),
                incarnation: 0,
                endpoint: endpoint.clone(),
                address: Address(String::new()),
                labels: BTreeMap::new(),
            };
            (instance.id, instance)
        })
        .collect()
    }

    #[tokio::test(start_paused = true)]
    async fn most_of_a_fleet_is_not_believed_gone_at_once_but_in_the_end() {
        let mut doubt = Doubt { hold: Duration::from_secs(20), since: None };
        let start = Instant::now();
        let all = fleet(0..4);
        assert!(!doubt.holds(&all, &fleet(0..2), start), "half is believed");
        assert!(!doubt.holds(&fleet(0..0), &fleet(0..0), start));
        assert!(doubt.holds(&all, &fleet(0..1), start));
        assert!(doubt.holds(&all, &fleet(9..12), start + Duration::from_secs(19)));
        assert!(!doubt.holds(&all, &fleet(0..3), start + Duration::from_secs(19)), "they are back");
        assert!(doubt.holds(&all, &fleet(0..1), start + Duration::from_secs(20)), "a new doubt");
        assert!(!doubt.holds(&all, &fleet(0..1), start + Duration::from_secs(40)));
    }
}
