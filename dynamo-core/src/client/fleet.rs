use std::sync::Arc;
use std::time::Duration;

use futures::stream::{self, BoxStream, FuturesUnordered};
use futures::{FutureExt, StreamExt};
use tokio::sync::watch;
use tokio::time::Instant;

use super::health::Health;
use super::totals::ClientTotals;
use crate::discovery::{Change, Instance, View};
use crate::error::{Error, ErrorKind, Result};
use crate::name::EndpointPath;
use crate::protocol::InstanceId;
use crate::runtime::Runtime;

/// The instances of one endpoint: who is there, and who answers.
#[derive(Debug)]
pub(super) struct Fleet {
    instances: watch::Receiver<Arc<[Instance]>>,
    pub(super) health: Arc<Health>,
    pub(super) totals: Arc<ClientTotals>,
}

impl Fleet {
    /// Starts to follow `endpoint`; returns once the first list of instances is known, or fails
    /// with [`Unavailable`](ErrorKind::Unavailable) if discovery gives none.
    pub(super) async fn follow(runtime: &Runtime, endpoint: &EndpointPath) -> Result<Arc<Self>> {
        let mut changes = runtime.discovery().watch(endpoint).await?;
        let mut view = View::default();
        match tokio::time::timeout(FIRST_LIST_MAX, changes.next()).await {
            Ok(Some(change)) => view.apply(change),
            _ => {
                let message = format!("discovery gave no list of {endpoint}");
                return Err(Error::new(ErrorKind::Unavailable, message).unprocessed());
            }
        }
        let (sender, instances) = watch::channel(view.instances());
        let totals = ClientTotals::of(runtime.metrics(), endpoint);
        let health = Arc::new(Health::new(Arc::clone(&totals.ejections)));
        let probes = Follower { runtime: runtime.clone(), view, sender, health: health.clone() };
        runtime.spawn(probes.run(changes));
        let fleet = Arc::new(Self { instances, health, totals });
        fleet.totals.add(&fleet);
        Ok(fleet)
    }

    /// Returns the instances known at this moment, ordered by id.
    pub(super) fn instances(&self) -> Arc<[Instance]> {
        Arc::clone(&self.instances.borrow())
    }

    /// Returns the instances known at this moment, and again whenever there are others.
    pub(super) fn watch(&self) -> BoxStream<'static, Arc<[Instance]>> {
        let mut instances = self.instances.clone();
        instances.mark_changed();
        let next = |mut instances: watch::Receiver<Arc<[Instance]>>| async move {
            instances.changed().await.ok()?;
            let list = Arc::clone(&instances.borrow_and_update());
            Some((list, instances))
        };
        stream::unfold(instances, next).boxed()
    }

    /// Returns those of them that requests should go to.
    pub(super) fn candidates(&self) -> Arc<[Instance]> {
        self.health.candidates(self.instances())
    }

    /// Waits until so many instances are known. Cancel safe.
    pub(super) async fn wait_for(&self, count: usize) {
        // The sender lives as long as the receivers.
        let _ = self.instances.clone().wait_for(|instances| instances.len() >= count).await;
    }
}

/// Folds what discovery says, and probes who is doubtful or did not answer.
struct Follower {
    runtime: Runtime,
    view: View,
    sender: watch::Sender<Arc<[Instance]>>,
    health: Arc<Health>,
}

impl Follower {
    /// Runs until no client is left.
    async fn run(mut self, mut changes: BoxStream<'static, Change>) {
        let mut probes = FuturesUnordered::new();
        let mut has_ended = false;
        let doubts = tokio::time::sleep_until(Instant::now());
        tokio::pin!(doubts);
        loop {
            tokio::select! {
                () = self.sender.closed() => return,
                change = changes.next(), if !has_ended => match change {
                    Some(change) => {
                        let had_doubts = self.view.doubtful().next().is_some();
                        self.view.apply(change);
                        self.publish();
                        if !had_doubts {
                            doubts.as_mut().reset(Instant::now());
                        }
                    }
                    // The directory has ended: the last good set stays.
                    None => has_ended = true,
                },
                () = self.health.due() => {
                    for id in self.health.take_due() {
                        match self.probe(id) {
                            Some(probe) => probes.push(probe),
                            // It may come back later, as good as new.
                            None => self.health.forget(id),
                        }
                    }
                }
                () = &mut doubts, if self.view.doubtful().next().is_some() => {
                    let doubtful: Vec<_> = self.view.doubtful().collect();
                    probes.extend(doubtful.into_iter().filter_map(|id| self.probe(id)));
                    doubts.as_mut().reset(Instant::now() + DOUBT_EVERY);
                }
                Some((id, is_there)) = probes.next(), if !probes.is_empty() => {
                    self.health.probed(id, is_there);
                    if self.view.settle(id, is_there) {
                        self.publish();
                    }
                }
            }
        }
    }

    fn publish(&self) {
        let instances = self.view.instances();
        self.health.keep(&instances);
        self.sender.send_replace(instances);
    }

    /// Asks an instance whether it is there, if discovery still knows it.
    fn probe(&self, id: InstanceId) -> Option<impl Future<Output = (InstanceId, bool)> + use<>> {
        let instance = self.view.get(id)?.clone();
        let plane = Arc::clone(self.runtime.request_plane());
        let probe = async move {
            let probe = tokio::time::timeout(PROBED_WITHIN, plane.probe(&instance)).await;
            // Who has no room is there.
            let is_there = match probe {
                Ok(Err(error)) => error.kind() == ErrorKind::Overloaded,
                outcome => outcome.is_ok(),
            };
            (id, is_there)
        };
        Some(probe.boxed())
    }
}

/// A directory that answers gives its list at once.
const FIRST_LIST_MAX: Duration = Duration::from_secs(10);

/// Who is alive answers within this.
const PROBED_WITHIN: Duration = Duration::from_secs(3);

/// How often instances are probed that discovery has lost without a word of theirs.
const DOUBT_EVERY: Duration = Duration::from_secs(1);

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Client, Context, ResponseStream, engine_fn};

    #[tokio::test]
    async fn whoever_watches_sees_who_is_there_and_who_comes_and_goes() {
        let component = Runtime::in_process().namespace("n").unwrap().component("c").unwrap();
        let endpoint = component.endpoint("e").unwrap();
        let client: Client<u32, u32> = endpoint.client().await.unwrap();
        let mut watch = client.watch();
        assert!(watch.next().await.unwrap().is_empty());
        let engine =
            engine_fn(
                |ctx: Context, n: u32| async move { Ok(ResponseStream::from_items(&ctx, [n])) },
            );
        let serving = endpoint.serve(engine).await.unwrap();
        assert_eq!(watch.next().await.unwrap().len(), 1);
        assert_eq!(client.watch().next().await.unwrap().len(), 1);
        drop(serving);
        assert!(watch.next().await.unwrap().is_empty());
    }
}
