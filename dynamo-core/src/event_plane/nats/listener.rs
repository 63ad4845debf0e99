use std::fmt;
use std::time::Instant;

use async_trait::async_trait;
use bytes::Bytes;
use futures::StreamExt;
use tokio_util::sync::CancellationToken;

use super::super::sequence::{Heard, Judged};
use super::super::{RawDelivery, RawSubscriber};
use crate::time::{Clock, SystemClock};

/// The listening end of one topic: tells what is missing before what comes behind it.
pub(super) struct NatsSubscriber {
    messages: async_nats::Subscriber,
    heard: Heard,
    since: Instant,
    /// An event behind a gap that was told first.
    waiting: Option<Bytes>,
    shutdown: CancellationToken,
}

impl NatsSubscriber {
    /// Listens from now on, until `shutdown`.
    pub(super) fn new(messages: async_nats::Subscriber, shutdown: CancellationToken) -> Self {
        let (heard, since) = (Heard::new(PUBLISHERS_MAX), SystemClock.now());
        Self { messages, heard, since, waiting: None, shutdown }
    }
}

impl fmt::Debug for NatsSubscriber {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("NatsSubscriber").finish_non_exhaustive()
    }
}

#[async_trait]
impl RawSubscriber for NatsSubscriber {
    async fn recv(&mut self) -> Option<RawDelivery> {
        if let Some(event) = self.waiting.take() {
            return (!self.shutdown.is_cancelled()).then_some(RawDelivery::Event(event));
        }
        loop {
            let message = tokio::select! {
                // What is still waiting is not heard any more.
                biased;
                () = self.shutdown.cancelled() => return None,
                message = self.messages.next() => message?,
            };
            let listened = SystemClock.now().saturating_duration_since(self.since);
            match self.heard.judge(message.payload, listened) {
                Judged::Event(event) => return Some(RawDelivery::Event(event)),
                Judged::Nothing => {}
                Judged::Gap { missed, event } => {
                    self.waiting = event;
                    return Some(RawDelivery::Gap { missed });
                }
            }
        }
    }
}

/// Far more processes than publish on one topic; of more, those that were silent for longest are
/// forgotten, and whoever is new from then on is told as a gap.
const PUBLISHERS_MAX: usize = 65_536;
