use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::{Duration, Instant};

use dynamo_core::event_plane::{Delivery, Subscriber};
use dynamo_core::protocol::{KvEvent, SnapshotPage, SnapshotRequest, WorkerId};
use dynamo_core::{Client, Instance, Result};
use futures::StreamExt;
use futures::future::BoxFuture;
use futures::stream::FuturesUnordered;
use tokio_util::sync::{CancellationToken, DropGuard};
use tokio_util::task::TaskTracker;

use super::config::ResyncConfig;
use super::intake::{FeedId, Question};
use super::sequencer::Snapshot;
use super::snapshot::fetch;
use crate::router::KvRouter;

/// Applies a subscription's events to a router until it is shut down or dropped.
#[derive(Debug)]
#[must_use = "dropping the feed stops it"]
pub struct EventFeed {
    tasks: TaskTracker,
    shutdown: CancellationToken,
    _shutdown_on_drop: DropGuard,
}

impl EventFeed {
    /// Starts to feed `router`. What is known of a worker is dropped where events of its are missing.
    ///
    /// # Panics
    /// If called outside a tokio runtime.
    pub fn start(router: KvRouter, events: Subscriber<KvEvent>) -> Self {
        Self::run(Feed { router, events, resync: None })
    }

    /// Starts to feed `router`, and asks workers what they hold where events of theirs are missing.
    ///
    /// `snapshots` calls the endpoint at which the workers whose events these are serve a snapshot
    /// engine (`dynamo_kv::SnapshotEngine`), as the instances that their events name. It is asked of
    /// all ranks of each instance that is listed there, and of every worker that was heard; of one that
    /// does not answer what is known is dropped where events are missing.
    ///
    /// # Panics
    /// If called outside a tokio runtime.
    pub fn start_with_snapshots(
        router: KvRouter,
        events: Subscriber<KvEvent>,
        snapshots: Client<SnapshotRequest, SnapshotPage>,
        config: ResyncConfig,
    ) -> Self {
        let feed = router.intake().open(config.clone());
        let (asking, listed) = (FuturesUnordered::new(), Arc::default());
        let looked_at = router.clock().now();
        let resync = Resync { feed, snapshots, config, asking, listed, looked_at };
        Self::run(Feed { router, events, resync: Some(resync) })
    }

    fn run(feed: Feed) -> Self {
        let (tasks, shutdown) = (TaskTracker::new(), CancellationToken::new());
        let stop = shutdown.clone();
        tasks.spawn(async move {
            tokio::select! {
                () = stop.cancelled() => {}
                () = feed.work() => {}
            }
        });
        Self { tasks, _shutdown_on_drop: shutdown.clone().drop_guard(), shutdown }
    }

    /// Stops the feed and joins its task.
    ///
    /// # Cancel safety
    /// Cancel safe; the task ends all the same.
    pub async fn shutdown(self) {
        self.shutdown.cancel();
        self.tasks.close();
        self.tasks.wait().await;
    }
}

/// What the task has.
struct Feed {
    router: KvRouter,
    events: Subscriber<KvEvent>,
    resync: Option<Resync>,
}

/// Whom it asks.
struct Resync {
    feed: FeedId,
    snapshots: Client<SnapshotRequest, SnapshotPage>,
    config: ResyncConfig,
    /// As many as the config says, each for as long as it says.
    asking: FuturesUnordered<BoxFuture<'static, (Question, Result<Snapshot>)>>,
    /// The instances that were listed when last looked at.
    listed: Arc<[Instance]>,
    /// When all of them were looked for.
    looked_at: Instant,
}

impl Feed {
    async fn work(mut self) {
        loop {
            let wait = self.ask();
            let Self { router, events, resync } = &mut self;
            let answer = async {
                match resync {
                    Some(Resync { asking, .. }) if !asking.is_empty() => asking.next().await,
                    _ => std::future::pending().await,
                }
            };
            tokio::select! {
                delivery = events.recv() => match delivery {
                    None => return,
                    Some(delivery) => self.take(delivery),
                },
                Some((question, answer)) = answer => {
                    let worker = question.request.worker;
                    if let Err(error) = &answer {
                        tracing::debug!(%worker, %error, "no snapshot of a worker's cache");
                    }
                    let now = router.clock().now();
                    router.intake().settle(question, answer.as_ref().ok(), now);
                },
                () = tokio::time::sleep(wait) => {}
            }
        }
    }

    fn take(&self, delivery: Delivery<KvEvent>) {
        let feed = self.resync.as_ref().map(|resync| resync.feed);
        match delivery {
            Delivery::Event { value } => self.router.apply_from(&value, feed),
            Delivery::Gap { missed } => {
                tracing::warn!(missed, "KV events lost");
                // Which worker lost some shows in the numbers of its next one, if there is one.
                let now = self.router.clock().now();
                feed.into_iter().for_each(|feed| self.router.intake().lost(feed, now));
            }
            _ => {}
        }
    }

    /// Asks whom it is time to ask; returns how long there is nothing more to do.
    fn ask(&mut self) -> Duration {
        let Self { router, resync: Some(resync), .. } = self else { return LOOK_EVERY };
        let (intake, now) = (router.intake(), router.clock().now());
        let (listed, looked) = (resync.snapshots.instances(), resync.looked_at);
        // Who was away from the candidates is forgotten, and may be back without a word.
        let is_all = now.saturating_duration_since(looked) >= resync.config.audit_every;
        if is_all || !Arc::ptr_eq(&listed, &resync.listed) {
            let is_old = |id| resync.listed.binary_search_by_key(&id, |known| known.id).is_ok();
            let workers = listed.iter().flat_map(|instance| {
                let ranks = 0..router.ranks(instance);
                let ranks = ranks.map(|rank| WorkerId { instance: instance.id, rank });
                ranks.chain(intake.workers_of(instance.id)).collect::<BTreeSet<_>>()
            });
            for worker in workers {
                if !is_old(worker.instance) || (is_all && !intake.knows(worker)) {
                    router.expect(worker, resync.feed);
                }
            }
            resync.looked_at = if is_all { now } else { looked };
            resync.listed = listed;
        }
        let (questions, next) = intake.due(resync.feed, now);
        for question in questions {
            let (client, config) = (resync.snapshots.clone(), resync.config.clone());
            let answer = fetch(client, question.request, config);
            resync.asking.push(Box::pin(async move { (question, answer.await) }));
        }
        next.map_or(LOOK_EVERY, |next| next.saturating_duration_since(now).min(LOOK_EVERY))
    }
}

impl Drop for Feed {
    fn drop(&mut self) {
        if let Some(resync) = &self.resync {
            self.router.intake().close(resync.feed);
        }
    }
}

/// New instances are looked for so often at least.
const LOOK_EVERY: Duration = Duration::from_secs(1);

#[cfg(test)]
mod tests;
