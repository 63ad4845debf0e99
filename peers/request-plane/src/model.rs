//! What every server of the comparison answers, so that only the way there and back differs.

use std::sync::atomic::{AtomicU32, Ordering};

use futures::future::Either;
use futures::stream::{self, Stream};
use serde::{Deserialize, Serialize};
use tokio::sync::watch;

/// A request: for how many tokens, and whether they come in steps.
#[derive(Debug, Clone, Copy, Serialize, Deserialize)]
pub struct Ask {
    pub count: u32,
    pub stepped: bool,
}

/// Makes tokens: all at once, or for all streams together in steps, as an engine decodes a batch.
///
/// A step gives every stream one token. The next one is made when the callers have taken all of
/// the last, so nothing can be batched within a stream, and what is measured is throughput.
#[derive(Debug)]
pub struct Model {
    /// How many tokens every stream of the batch has been given.
    steps: watch::Sender<u32>,
    streams: AtomicU32,
    taken: AtomicU32,
}

impl Model {
    /// Begins a batch of `streams`: none has more than its first token until all have that.
    pub fn begin(&self, streams: u32) {
        self.streams.store(streams, Ordering::Relaxed);
        self.taken.store(0, Ordering::Relaxed);
        self.steps.send_replace(1);
    }

    /// Answers a request with its tokens.
    pub fn answer(&self, ask: Ask) -> impl Stream<Item = u32> + Send + use<> {
        if !ask.stepped {
            return Either::Left(stream::iter((0..ask.count).map(token)));
        }
        let steps = self.steps.subscribe();
        Either::Right(stream::unfold((steps, 0), move |(mut steps, made)| async move {
            if made == ask.count {
                return None;
            }
            steps.wait_for(|steps| *steps > made).await.ok()?;
            Some((token(made), (steps, made + 1)))
        }))
    }

    /// Hears from a caller that `count` tokens of an answer to `ask` have come.
    pub fn take(&self, ask: Ask, count: u32) {
        if !ask.stepped {
            return;
        }
        let taken = self.taken.fetch_add(count, Ordering::AcqRel) + count;
        if taken.is_multiple_of(self.streams.load(Ordering::Relaxed)) {
            self.steps.send_modify(|steps| *steps += 1);
        }
    }
}

impl Default for Model {
    fn default() -> Self {
        Self { steps: watch::Sender::new(0), streams: AtomicU32::new(1), taken: AtomicU32::new(0) }
    }
}

/// One of a real vocabulary's size.
fn token(n: u32) -> u32 {
    40_000 + n % 9000
}
