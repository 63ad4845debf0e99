//! One endpoint's instances: a listing, then a watch from the revision behind it.

use std::sync::Arc;
use std::time::Duration;

use etcd_client::{Client, GetOptions, WatchOptions, WatchStream};
use tokio::sync::watch;
use tokio::time::Instant;

use super::roster::Roster;
use super::{ANSWER_MAX, EtcdConfig, answered, back_off, jitter, key};
use crate::discovery::known::{Instances, Known};
use crate::error::{Error, ErrorKind, Result};

/// An endpoint that is listened to.
#[derive(Debug, Clone)]
pub(super) struct Follow {
    /// What is known of it.
    pub(super) known: watch::Sender<Known>,
    /// How many looks were asked for: each is a listing that is begun behind the question.
    pub(super) looks: watch::Sender<u64>,
}

/// Follows the keys under `prefix` for good.
pub(super) async fn follow(config: Arc<EtcdConfig>, prefix: String, follow: Follow) {
    let mut follower = Follower {
        roster: Roster::new(config.ttl + GRACE),
        client: None,
        is_cut_off: false,
        tries: 0,
        looks: follow.looks.subscribe(),
        known: follow.known,
        config,
        prefix,
    };
    loop {
        let (prefix, tries) = (follower.prefix.clone(), follower.tries);
        match Box::pin(follower.list_and_watch()).await {
            Ok(Ended::ToListAgain) => continue,
            // The past that was asked for is gone, or not allowed: the next listing has the
            // present.
            Ok(Ended::Cancelled(reason)) => {
                tracing::info!(reason, prefix, tries, "etcd has cancelled a watch");
            }
            Err(error) => {
                tracing::warn!(%error, prefix, tries, "etcd is away; what is known stays");
                follower.cut_off();
            }
        }
        follower.tries += 1;
        tokio::time::sleep(back_off(follower.tries)).await;
    }
}

struct Follower {
    config: Arc<EtcdConfig>,
    prefix: String,
    roster: Roster,
    client: Option<Client>,
    /// Since the last listing something may have happened that no watch has told.
    is_cut_off: bool,
    /// Failures since a watch was last seen to work.
    tries: u32,
    looks: watch::Receiver<u64>,
    known: watch::Sender<Known>,
}

/// Why a watch has ended that has not failed.
enum Ended {
    ToListAgain,
    Cancelled(String),
}

impl Follower {
    async fn list_and_watch(&mut self) -> Result<Ended> {
        let mut client = match self.client.take() {
            Some(client) => client,
            None => self.config.connect().await?,
        };
        let look = *self.looks.borrow_and_update();
        let (listed, revision) = list(&mut client, &self.config, &self.prefix).await?;
        self.roster.listed(listed, self.is_cut_off, Instant::now());
        self.is_cut_off = false;
        self.publish(Some(look));

        let from = WatchOptions::new().with_prefix().with_start_revision(revision + 1);
        let events = answered(client.watch(self.prefix.as_str(), Some(from))).await?;
        let ended = self.watch(events).await?;
        self.client = Some(client);
        Ok(ended)
    }

    async fn watch(&mut self, mut events: WatchStream) -> Result<Ended> {
        let list_again = Instant::now() + self.config.reconcile.mul_f64(0.5 + 0.5 * jitter());
        let mut pulse = Pulse::new(self.config.ttl, Instant::now());
        loop {
            let wake = self.roster.next_expiry().map_or(list_again, |at| at.min(list_again));
            let message = tokio::select! {
                message = events.message() => message,
                looks = self.looks.changed() => match looks {
                    Ok(()) => return Ok(Ended::ToListAgain),
                    Err(_) => return Err(Error::new(ErrorKind::Closed, "nobody listens")),
                },
                () = tokio::time::sleep_until(wake.min(pulse.next())) => {
                    let now = Instant::now();
                    self.roster.expire(now);
                    self.publish(None);
                    if now >= list_again {
                        // A watch that has silently lost something is mended by the listing.
                        self.tries = 0;
                        return Ok(Ended::ToListAgain);
                    }
                    if pulse.is_to_ask(now)? {
                        answered(events.request_progress()).await?;
                    }
                    continue;
                }
            };
            let message = message
                .map_err(|error| Error::new(ErrorKind::Unavailable, "watch").with_source(error))?;
            let message = message
                .ok_or_else(|| Error::new(ErrorKind::Unavailable, "etcd has closed the watch"))?;
            if message.header().is_none() {
                return Err(Error::new(ErrorKind::Protocol, "a watch without a revision"));
            }
            if message.canceled() || message.compact_revision() > 0 {
                return Ok(Ended::Cancelled(message.cancel_reason().to_owned()));
            }
            pulse.heard(Instant::now());
            if !message.created() {
                self.tries = 0;
            }
            self.roster.told(&self.config.root, &message, Instant::now());
            self.publish(None);
        }
    }

    /// Notes that etcd does not answer.
    fn cut_off(&mut self) {
        self.client = None;
        self.is_cut_off = true;
        self.known.send_if_modified(|known| !std::mem::replace(&mut known.is_degraded, true));
    }

    /// Tells the watches what is known, by the listing that answers `look` if there was one.
    fn publish(&self, look: Option<u64>) {
        self.known.send_if_modified(|known| {
            let instances = Some(self.roster.instances());
            let absences = self.roster.absences;
            let looks = look.unwrap_or(known.looks);
            let is_news = known.is_degraded || known.instances != instances || known.looks != looks;
            *known = Known { instances, is_degraded: false, absences, looks };
            is_news
        });
    }
}

/// When a watch is asked whether it lives: a connection that answers proves nothing of it.
struct Pulse {
    quiet_max: Duration,
    heard: Instant,
    asked: Option<Instant>,
}

impl Pulse {
    fn new(quiet_max: Duration, now: Instant) -> Self {
        Self { quiet_max, heard: now, asked: None }
    }

    fn heard(&mut self, now: Instant) {
        (self.heard, self.asked) = (now, None);
    }

    /// Returns when to look next.
    fn next(&self) -> Instant {
        self.asked.map_or(self.heard + self.quiet_max, |asked| asked + ANSWER_MAX)
    }

    /// Tells whether to ask; fails if an answer is overdue.
    fn is_to_ask(&mut self, now: Instant) -> Result<bool> {
        if now < self.next() {
            return Ok(false);
        }
        if self.asked.is_some() {
            return Err(Error::new(ErrorKind::Unavailable, "a watch has gone silent"));
        }
        self.asked = Some(now);
        Ok(true)
    }
}

async fn list(client: &mut Client, config: &EtcdConfig, prefix: &str) -> Result<(Instances, i64)> {
    let options = GetOptions::new().with_prefix();
    let found = answered(client.get(prefix, Some(options))).await?;
    // Without it the watch would begin at a past that is compacted.
    let revision = found
        .header()
        .map(etcd_client::ResponseHeader::revision)
        .ok_or_else(|| Error::new(ErrorKind::Protocol, "etcd has answered without a revision"))?;
    let mut instances = Instances::new();
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

/// Time to come back: a reconnect with its back-off, and a registration.
const GRACE: Duration = Duration::from_secs(2);

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_silent_watch_is_asked_once_and_then_given_up() {
        let (start, second) = (Instant::now(), Duration::from_secs(1));
        let mut pulse = Pulse::new(5 * second, start);
        assert!(!pulse.is_to_ask(start + 4 * second).unwrap());
        pulse.heard(start + second);
        assert!(!pulse.is_to_ask(start + 5 * second).unwrap());
        assert!(pulse.is_to_ask(start + 6 * second).unwrap());
        assert_eq!(pulse.next(), start + 6 * second + ANSWER_MAX);
        assert!(!pulse.is_to_ask(start + 7 * second).unwrap(), "asked already");
        pulse.heard(start + 7 * second);
        assert!(pulse.is_to_ask(start + 12 * second).unwrap());
        let error = pulse.is_to_ask(start + 12 * second + ANSWER_MAX).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Unavailable);
    }
}
