use std::time::Duration;

use bytes::Bytes;
use dynamo_transfer::{Agent, RemoteAgent};
use futures::StreamExt;
use futures::stream::FuturesUnordered;
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

/// What is said without waiting whether it arrives: the protocol does without any single word of it.
#[derive(Clone)]
pub(super) struct Outbox(mpsc::Sender<(RemoteAgent, Bytes)>);

impl Outbox {
    /// Makes one, and what sends what is put into it: until `stop`, and then for a second what was put in
    /// before.
    pub(super) fn new(
        agent: Agent,
        stop: CancellationToken,
    ) -> (Self, impl Future<Output = ()> + Send) {
        let (sender, receiver) = mpsc::channel(WAITING_MAX);
        let send = async move {
            let mut sending = Box::pin(send(agent, receiver, stop.clone()));
            tokio::select! {
                () = &mut sending => return,
                () = stop.cancelled() => {}
            }
            // What does not get through by now costs a peer the wait for a lease.
            let _ = tokio::time::timeout(FAREWELL_MAX, sending).await;
        };
        (Self(sender), send)
    }

    pub(super) fn put(&self, peer: RemoteAgent, word: Bytes) {
        if self.0.try_send((peer, word)).is_err() {
            tracing::warn!("hand-off message lost: too many wait, or the hand-off has ended");
        }
    }
}

async fn send(
    agent: Agent,
    mut waiting: mpsc::Receiver<(RemoteAgent, Bytes)>,
    stop: CancellationToken,
) {
    let mut said = FuturesUnordered::new();
    loop {
        tokio::select! {
            // Closed, it gives out what is left.
            () = stop.cancelled(), if !waiting.is_closed() => waiting.close(),
            word = waiting.recv(), if said.len() < AT_ONCE_MAX => {
                let Some((peer, word)) = word else { break };
                let agent = &agent;
                said.push(async move {
                    let told = agent.notify(&peer, word);
                    match tokio::time::timeout(TELL_MAX, told).await {
                        Ok(Ok(())) => {}
                        Ok(Err(error)) => tracing::debug!(%error, "hand-off message lost"),
                        Err(_) => tracing::debug!(peer = peer.name(), "hand-off message late"),
                    }
                });
            }
            Some(()) = said.next() => {}
        }
    }
    while said.next().await.is_some() {}
}

/// Of a worker that hands over thousands of sequences a second: some tenths of a second.
const WAITING_MAX: usize = 1024;

const AT_ONCE_MAX: usize = 64;

/// A peer that takes longer to hear a word has asked again, or has given up.
const TELL_MAX: Duration = Duration::from_secs(5);

const FAREWELL_MAX: Duration = Duration::from_secs(1);
