//! The lease and what lives under it: brings etcd to what is wanted, and keeps it there.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};

use etcd_client::{
    Client, Compare, CompareOp, LeaseKeepAliveStream, LeaseKeeper, LeaseTimeToLiveOptions,
    PutOptions, Txn, TxnOp,
};
use tokio::sync::{Notify, oneshot};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::{ANSWER_MAX, EtcdConfig, answered, back_off, jitter, key, lock};
use crate::discovery::Instance;
use crate::error::{Error, ErrorKind, Result};

/// What should be in etcd, and what should not be there any more.
#[derive(Default)]
pub(super) struct Wanted {
    state: Mutex<State>,
    changed: Notify,
}

#[derive(Default)]
struct State {
    instances: BTreeMap<String, Entry>,
    /// Values to be taken out, if they are still there.
    removed: Vec<(String, Vec<u8>)>,
    registrations: u64,
}

struct Entry {
    /// Which registration this is: a later one of the same key is another.
    registration: u64,
    instance: Instance,
    /// The value in etcd, once it was put there under the lease that holds.
    published: Option<Vec<u8>>,
    /// Told how the first publication went.
    waiter: Option<oneshot::Sender<Result<()>>>,
}

impl Wanted {
    /// Wants an instance; returns the number of the registration, and what tells when it is done.
    pub(super) fn add(
        &self,
        key: &str,
        instance: Instance,
    ) -> Result<(u64, oneshot::Receiver<Result<()>>)> {
        let mut state = lock(&self.state);
        let known = state.instances.get(key).map(|entry| entry.instance.incarnation);
        if known.is_some_and(|known| known >= instance.incarnation) {
            return Err(conflict(&instance));
        }
        state.registrations += 1;
        let registration = state.registrations;
        let (waiter, published) = oneshot::channel();
        let entry = Entry { registration, instance, published: None, waiter: Some(waiter) };
        state.instances.insert(key.to_owned(), entry);
        drop(state);
        self.changed.notify_one();
        Ok((registration, published))
    }

    /// Wants an instance no longer.
    pub(super) fn remove(&self, key: &str, registration: u64) {
        let mut state = lock(&self.state);
        let known = state.instances.get(key).map(|entry| entry.registration);
        if known == Some(registration)
            && let Some(Entry { published: Some(value), .. }) = state.instances.remove(key)
        {
            state.removed.push((key.to_owned(), value));
        }
        drop(state);
        self.changed.notify_one();
    }

    /// Notes that the lease is gone, and with it all that was published: it is published again as
    /// a later incarnation, so that nobody takes what is left of the old one for news.
    fn lease_lost(&self) {
        let mut state = lock(&self.state);
        state.removed.clear();
        for entry in state.instances.values_mut() {
            if entry.published.take().is_some() {
                entry.instance.incarnation += 1;
            }
        }
    }

    /// Notes which keys the lease has: one that is published and not there, because somebody has
    /// taken it out or over, is to be published again.
    fn found(&self, keys: &[Vec<u8>]) {
        for (key, entry) in &mut lock(&self.state).instances {
            if entry.published.is_some() && !keys.iter().any(|found| found == key.as_bytes()) {
                tracing::warn!(key, "an instance that is registered is not in etcd any more");
                entry.published = None;
            }
        }
    }

    /// Returns what is not published yet.
    fn unpublished(&self) -> Vec<(String, u64, Instance)> {
        let state = lock(&self.state);
        let missing = state.instances.iter().filter(|(_, entry)| entry.published.is_none());
        missing
            .map(|(key, entry)| (key.clone(), entry.registration, entry.instance.clone()))
            .collect()
    }

    /// Notes that an instance is published, or that another one has its key.
    fn settle(&self, key: &str, registration: u64, outcome: Result<Vec<u8>>) {
        let mut state = lock(&self.state);
        let is_wanted = state.instances.get(key).is_some_and(|e| e.registration == registration);
        match outcome {
            Ok(value) if !is_wanted => state.removed.push((key.to_owned(), value)),
            Ok(value) => {
                if let Some(entry) = state.instances.get_mut(key) {
                    entry.published = Some(value);
                    // The registrant may have stopped to wait.
                    entry.waiter.take().map(|waiter| waiter.send(Ok(())));
                }
            }
            Err(error) if is_wanted => match state.instances.remove(key).and_then(|e| e.waiter) {
                Some(waiter) => {
                    let _ = waiter.send(Err(error));
                }
                None => tracing::error!(%error, "instance lost its key in etcd to another one"),
            },
            Err(_) => {}
        }
    }

    /// Wants nothing any more.
    fn remove_all(&self) {
        let State { instances, removed, .. } = &mut *lock(&self.state);
        let leaving = std::mem::take(instances).into_iter();
        removed.extend(leaving.filter_map(|(key, entry)| Some((key, entry.published?))));
    }

    fn removed(&self) -> Vec<(String, Vec<u8>)> {
        lock(&self.state).removed.clone()
    }

    fn forget_removed(&self, gone: &(String, Vec<u8>)) {
        lock(&self.state).removed.retain(|removed| removed != gone);
    }
}

/// Keeps etcd at what is wanted, until `shutdown`; then takes everything out.
pub(super) async fn keep(
    config: Arc<EtcdConfig>,
    wanted: Arc<Wanted>,
    shutdown: CancellationToken,
) {
    let mut lease = None;
    let mut tries = 0;
    loop {
        let kept = tokio::select! {
            () = shutdown.cancelled() => break,
            kept = keep_lease(&config, &wanted, &mut lease, &mut tries) => kept,
        };
        if let Err(error) = kept {
            tracing::warn!(%error, tries, "etcd is away; what is registered goes on");
        }
        tries += 1;
        tokio::select! {
            () = shutdown.cancelled() => break,
            () = tokio::time::sleep(back_off(tries)) => {}
        }
    }
    if let Some(lease) = lease {
        // Without an answer the lease expires by itself.
        let _ = Box::pin(leave(&config, &wanted, lease)).await;
    }
}

/// Holds the lease over one connection; returns when either is lost.
async fn keep_lease(
    config: &EtcdConfig,
    wanted: &Wanted,
    lease: &mut Option<i64>,
    tries: &mut u32,
) -> Result<()> {
    let mut client = config.connect().await?;
    let (id, mut keeper, mut answers) = hold(&mut client, config, wanted, lease).await?;
    *tries = 0;
    let third = config.ttl / 3;
    let mut next = Instant::now();
    let soon = || Instant::now() + config.reconcile.mul_f64(0.5 + 0.5 * jitter());
    let mut look_after = soon();
    loop {
        reconcile(&mut client, wanted, id).await?;
        tokio::select! {
            () = wanted.changed.notified() => {}
            () = tokio::time::sleep_until(look_after) => {
                let options = LeaseTimeToLiveOptions::new().with_keys();
                let found = answered(client.lease_time_to_live(id, Some(options))).await?;
                // Otherwise it is for the keep-alive to find that the lease is lost.
                if found.ttl() > 0 {
                    wanted.found(found.keys());
                }
                look_after = soon();
            }
            () = tokio::time::sleep_until(next) => {
                answered(keeper.keep_alive()).await?;
                let answer = answered(answers.message()).await?;
                if answer.is_none_or(|answer| answer.ttl() <= 0) {
                    *lease = None;
                    wanted.lease_lost();
                    return Err(Error::new(ErrorKind::Unavailable, "the lease has expired"));
                }
                next = Instant::now() + third.mul_f64(0.75 + 0.25 * jitter());
            }
        }
    }
}

/// Takes the known lease up again, or a new one if it is gone.
async fn hold(
    client: &mut Client,
    config: &EtcdConfig,
    wanted: &Wanted,
    lease: &mut Option<i64>,
) -> Result<(i64, LeaseKeeper, LeaseKeepAliveStream)> {
    if let Some(id) = *lease {
        match tokio::time::timeout(ANSWER_MAX, client.lease_keep_alive(id)).await {
            Ok(Ok((keeper, answers))) => return Ok((id, keeper, answers)),
            Ok(Err(etcd_client::Error::LeaseKeepAliveError(_))) => {
                *lease = None;
                wanted.lease_lost();
            }
            Ok(Err(error)) => {
                return Err(Error::new(ErrorKind::Unavailable, "etcd").with_source(error));
            }
            Err(_) => return Err(Error::new(ErrorKind::Unavailable, "etcd does not answer")),
        }
    }
    let ttl = i64::try_from(config.ttl.as_secs()).unwrap_or(i64::MAX);
    let id = answered(client.lease_grant(ttl, None)).await?.id();
    *lease = Some(id);
    let (keeper, answers) = answered(client.lease_keep_alive(id)).await?;
    Ok((id, keeper, answers))
}

/// Puts in what is missing and takes out what is not wanted any more.
async fn reconcile(client: &mut Client, wanted: &Wanted, lease: i64) -> Result<()> {
    for gone in wanted.removed() {
        let (key, value) = &gone;
        let is = |value: &[u8]| Compare::value(key.as_str(), CompareOp::Equal, value);
        let lease = Some(PutOptions::new().with_ignore_lease());
        let leaving = TxnOp::put(key.as_str(), key::LEAVING, lease);
        answered(client.txn(Txn::new().when([is(value)]).and_then([leaving]))).await?;
        let take_out = TxnOp::delete(key.as_str(), None);
        answered(client.txn(Txn::new().when([is(key::LEAVING)]).and_then([take_out]))).await?;
        wanted.forget_removed(&gone);
    }
    for (key, registration, instance) in wanted.unpublished() {
        let outcome = publish(client, &key, &instance, lease).await;
        match outcome {
            Err(error) if error.kind() != ErrorKind::Conflict => return Err(error),
            outcome => wanted.settle(&key, registration, outcome),
        }
    }
    Ok(())
}

/// Puts an instance in, unless the same or a higher incarnation of it is there.
async fn publish(
    client: &mut Client,
    key: &str,
    instance: &Instance,
    lease: i64,
) -> Result<Vec<u8>> {
    let value = key::encode(instance)?;
    for _ in 0..RACES_MAX {
        let found = answered(client.get(key, None)).await?;
        let revision = match found.kvs().first() {
            None => 0,
            // An earlier try was done, and its answer lost.
            Some(found) if found.value() == value && found.lease() == lease => return Ok(value),
            Some(found) => {
                let known = serde_json::from_slice::<Instance>(found.value()).ok();
                if known.is_some_and(|known| known.incarnation >= instance.incarnation) {
                    return Err(conflict(instance));
                }
                found.mod_revision()
            }
        };
        let unchanged = Compare::mod_revision(key, CompareOp::Equal, revision);
        let options = PutOptions::new().with_lease(lease);
        let put = TxnOp::put(key, value.clone(), Some(options));
        let done = answered(client.txn(Txn::new().when([unchanged]).and_then([put]))).await?;
        if done.succeeded() {
            return Ok(value);
        }
    }
    Err(Error::new(ErrorKind::Conflict, format!("{instance} is registered by several at once")))
}

/// Takes everything out, and the lease with it.
async fn leave(config: &EtcdConfig, wanted: &Wanted, lease: i64) -> Result<()> {
    wanted.remove_all();
    let mut client = config.connect().await?;
    reconcile(&mut client, wanted, lease).await?;
    answered(client.lease_revoke(lease)).await.map(|_| ())
}

fn conflict(instance: &Instance) -> Error {
    Error::new(ErrorKind::Conflict, format!("{instance} is registered already"))
}

/// Two that race for a key settle it by the second look.
const RACES_MAX: usize = 3;
