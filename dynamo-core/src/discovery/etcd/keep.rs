//! The lease and what lives under it: brings etcd to what is wanted, and keeps it there.

use std::sync::Arc;

use etcd_client::{
    Client, Compare, CompareOp, LeaseKeepAliveStream, LeaseKeeper, LeaseTimeToLiveOptions,
    PutOptions, Txn, TxnOp,
};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::wanted::{Wanted, conflict};
use super::{ANSWER_MAX, EtcdConfig, answered, back_off, jitter, key};
use crate::discovery::Instance;
use crate::error::{Error, ErrorKind, Result};

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
        if reconcile(&mut client, wanted, id).await? {
            look_after = look_after.min(Instant::now() + ANSWER_MAX);
        }
        tokio::select! {
            () = wanted.changed.notified() => {}
            () = tokio::time::sleep_until(look_after) => {
                look(&mut client, wanted, id).await?;
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

/// Compares what the lease has with what is wanted.
async fn look(client: &mut Client, wanted: &Wanted, lease: i64) -> Result<()> {
    let options = LeaseTimeToLiveOptions::new().with_keys();
    let found = answered(client.lease_time_to_live(lease, Some(options))).await?;
    if found.ttl() <= 0 {
        // It is for the keep-alive to find that the lease is lost.
        return Ok(());
    }
    for key in wanted.found(found.keys()) {
        let found = answered(client.get(key, None)).await?;
        for kv in found.kvs().iter().filter(|kv| kv.lease() == lease) {
            wanted.stray(&String::from_utf8_lossy(kv.key()), kv.value());
        }
    }
    Ok(())
}

/// Puts in what is missing and takes out what is not wanted any more. Tells whether something was
/// not there to be taken out: what was asked for may come about late.
async fn reconcile(client: &mut Client, wanted: &Wanted, lease: i64) -> Result<bool> {
    let mut is_late = false;
    for gone in wanted.removed() {
        let (key, value) = &gone;
        let is = |value: &[u8]| Compare::value(key.as_str(), CompareOp::Equal, value);
        let lease = Some(PutOptions::new().with_ignore_lease());
        let leaving = TxnOp::put(key.as_str(), key::LEAVING, lease);
        answered(client.txn(Txn::new().when([is(value)]).and_then([leaving]))).await?;
        let take_out = TxnOp::delete(key.as_str(), None);
        let taken = Txn::new().when([is(key::LEAVING)]).and_then([take_out]);
        is_late |= !answered(client.txn(taken)).await?.succeeded();
        wanted.forget_removed(&gone);
    }
    for (key, registration, instance) in wanted.unpublished() {
        let is_wanted = |value: &[u8]| wanted.trying(&key, registration, value);
        let outcome = publish(client, &key, &instance, lease, is_wanted).await;
        match outcome.transpose() {
            Some(Err(error)) if error.kind() != ErrorKind::Conflict => return Err(error),
            Some(outcome) => wanted.settle(&key, registration, outcome),
            None => {}
        }
    }
    Ok(is_late)
}

/// Puts an instance in, unless the same or a higher incarnation of it is there, or it is not wanted
/// at the last moment: then there is no value.
async fn publish(
    client: &mut Client,
    key: &str,
    instance: &Instance,
    lease: i64,
    is_wanted: impl Fn(&[u8]) -> bool,
) -> Result<Option<Vec<u8>>> {
    let value = key::encode(instance)?;
    for _ in 0..RACES_MAX {
        let found = answered(client.get(key, None)).await?;
        let revision = match found.kvs().first() {
            None => 0,
            // An earlier try was done, and its answer lost.
            Some(found) if found.value() == value && found.lease() == lease => {
                return Ok(Some(value));
            }
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
        if !is_wanted(&value) {
            return Ok(None);
        }
        let done = answered(client.txn(Txn::new().when([unchanged]).and_then([put]))).await?;
        if done.succeeded() {
            return Ok(Some(value));
        }
    }
    Err(Error::new(ErrorKind::Conflict, format!("{instance} is registered by several at once")))
}

/// Takes everything out, and the lease with it.
async fn leave(config: &EtcdConfig, wanted: &Wanted, lease: i64) -> Result<()> {
    wanted.remove_all();
    let mut client = config.connect().await?;
    reconcile(&mut client, wanted, lease).await?;
    // What was asked for and comes about late comes about no more.
    answered(client.lease_revoke(lease)).await.map(|_| ())
}

/// Two that race for a key settle it by the second look.
const RACES_MAX: usize = 3;
