//! A played publisher with sockets of ZeroMQ that are not ours.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::Bytes;
use tokio::task::JoinSet;
use tokio::time::{sleep, timeout};
use zeromq::{PubSocket, RouterSocket, Socket, SocketRecv, SocketSend, ZmqMessage};

use super::engine::Act;
use super::publisher::Publisher;
use crate::events::vllm::intake::Message;

/// A publisher and its sockets.
pub(super) struct Fleet {
    pub(super) publisher: Arc<Mutex<Publisher>>,
    pub(super) events: PubSocket,
    tasks: JoinSet<()>,
}

impl Fleet {
    pub(super) fn new(events: PubSocket, buffer_max: usize) -> Self {
        let publisher = Arc::new(Mutex::new(Publisher::new(4, buffer_max)));
        Self { publisher, events, tasks: JoinSet::new() }
    }

    /// Answers replays, and returns where.
    pub(super) async fn replays(&mut self) -> String {
        let mut socket = RouterSocket::new();
        let endpoint = socket.bind("tcp://127.0.0.1:0").await.unwrap();
        let publisher = self.publisher.clone();
        self.tasks.spawn(async move {
            loop {
                let asked = socket.recv().await.unwrap().into_vec();
                let [peer, delimiter, from] = &asked[..] else { panic!("{asked:?}") };
                assert!(delimiter.is_empty());
                let from = u64::from_be_bytes(from[..].try_into().unwrap());
                let mut answers: Vec<_> = publisher.lock().unwrap().buffer.clone().into();
                answers.retain(|message| message.number >= from);
                answers.push(Message { number: u64::MAX, payload: Vec::new() });
                for Message { number, payload } in answers {
                    // As vLLM 0.32 does: of the end the topic is empty.
                    let topic = if number == u64::MAX { &b""[..] } else { b"kv@m" };
                    let topic = Bytes::from_static(topic);
                    let number = Bytes::copy_from_slice(&number.to_be_bytes());
                    let parts = vec![peer.clone(), Bytes::new(), topic, number, payload.into()];
                    socket.send(ZmqMessage::try_from(parts).unwrap()).await.unwrap();
                }
            }
        });
        endpoint.to_string()
    }

    pub(super) fn act(&self, act: &Act) -> Message {
        self.publisher.lock().unwrap().act(act)
    }

    pub(super) async fn send(&mut self, Message { number, payload }: Message) {
        let number = Bytes::copy_from_slice(&number.to_be_bytes());
        let parts = vec![Bytes::from_static(b"kv@m"), number, payload.into()];
        self.events.send(ZmqMessage::try_from(parts).unwrap()).await.unwrap();
    }

    /// Publishes messages that say nothing until something holds.
    pub(super) async fn until(&mut self, holds: impl Fn() -> bool) {
        let publish = async {
            while !holds() {
                let nothing = self.publisher.lock().unwrap().message(&[]);
                self.send(nothing).await;
                sleep(Duration::from_millis(5)).await;
            }
        };
        timeout(Duration::from_secs(20), publish).await.unwrap();
    }
}
