use std::time::Duration;

use bytes::Bytes;
use dynamo_transfer::{Agent, RemoteAgent};
use futures::StreamExt;
use futures::stream::FuturesUnordered;
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

use super::answers;

/// What is said without waiting whether it arrives: the protocol does without any single word of it. A word
/// that is begun is said to its end, whoever has lost interest: giving it up would end the connection.
#[derive(Clone)]
pub(super) struct Outbox(mpsc::Sender<Word>);

struct Word {
    peer: RemoteAgent,
    bytes: Bytes,
    /// Who hears if it cannot be said, as which of its owners.
    sayer: Option<(usize, answers::Sender)>,
}

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

    /// Says something that nobody waits for.
    pub(super) fn put(&self, peer: RemoteAgent, bytes: Bytes) {
        self.push(Word { peer, bytes, sayer: None });
    }

    /// Says something to owner `at` of a pull, which hears if that fails.
    pub(super) fn ask(&self, peer: RemoteAgent, bytes: Bytes, at: usize, sayer: &answers::Sender) {
        self.push(Word { peer, bytes, sayer: Some((at, sayer.clone())) });
    }

    fn push(&self, word: Word) {
        if self.0.try_send(word).is_err() {
            tracing::warn!("hand-off message lost: too many wait, or the hand-off has ended");
        }
    }
}

async fn say(agent: &Agent, Word { peer, bytes, sayer }: Word) {
    match tokio::time::timeout(SAY_MAX, agent.notify(&peer, bytes)).await {
        Ok(Ok(())) => {}
        Ok(Err(error)) => {
            tracing::debug!(%error, "hand-off message lost");
            if let Some((at, sayer)) = sayer {
                // It has ended, or has more answers than it reads.
                let _ = sayer.try_send((at, Err(error)));
            }
        }
        Err(_) => tracing::debug!(peer = peer.name(), "hand-off message late"),
    }
}

async fn send(agent: Agent, mut waiting: mpsc::Receiver<Word>, stop: CancellationToken) {
    let mut said = FuturesUnordered::new();
    loop {
        tokio::select! {
            // Closed, it gives out what is left.
            () = stop.cancelled(), if !waiting.is_closed() => waiting.close(),
            word = waiting.recv(), if said.len() < AT_ONCE_MAX => {
                let Some(word) = word else { break };
                said.push(say(&agent, word));
            }
            Some(()) = said.next() => {}
        }
    }
    while said.next().await.is_some() {}
}

/// Of a worker that hands over thousands of sequences a second: some tenths of a second.
const WAITING_MAX: usize = 1024;

/// Of an agent's 4,096: peers that are gone keep their words for seconds.
const AT_ONCE_MAX: usize = 512;

/// A peer that takes longer to hear a word has asked again, or has given up.
const SAY_MAX: Duration = Duration::from_secs(5);

const FAREWELL_MAX: Duration = Duration::from_secs(1);
