//! What a publisher sends, from numbered messages to the router's events; no IO.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use super::batch::Batch;
use super::config::VllmConfig;
use super::order::{Judged, Order, Proof};
use super::pack::Malformed;
use super::problem::{Problem, VllmStats};
use super::sink::Sink;
use super::translator::Translator;

/// Takes in the messages of one publisher, over all its connections.
#[derive(Debug)]
pub(super) struct Intake<S> {
    translator: Arc<SharedTranslator>,
    order: Order,
    /// Whether what is known is still true of whoever is behind the connection.
    is_proven: bool,
    sink: S,
    /// What others see of the counters.
    shown: Arc<Mutex<VllmStats>>,
}

impl<S: Sink> Intake<S> {
    pub(super) fn new(config: VllmConfig, sink: S, shown: Arc<Mutex<VllmStats>>) -> Self {
        let translator = Arc::new(SharedTranslator(Mutex::new(Translator::new(config))));
        Self { translator, order: Order::default(), is_proven: true, sink, shown }
    }

    /// Returns what the events that came out so far are told by, for snapshots.
    pub(super) fn translator(&self) -> Arc<SharedTranslator> {
        Arc::clone(&self.translator)
    }

    /// Shows the counters as they are.
    pub(super) fn show(&self) {
        let stats = self.translator.lock().stats().clone();
        *self.shown.lock().unwrap_or_else(PoisonError::into_inner) = stats;
    }

    /// Takes note of a new connection.
    pub(super) fn connected(&mut self) {
        self.translator.lock().stats_mut().connections += 1;
        self.order.connected();
        self.is_proven = !self.order.is_known();
    }

    /// Forgets what is known, unless a replay has proven that it still holds.
    pub(super) fn doubt(&mut self) {
        if !self.is_proven {
            self.translator.lock().stats_mut().gaps += 1;
            self.forget(None);
        }
    }

    /// Forgets what is known; `next` is the message to come, if it is known.
    pub(super) fn forget(&mut self, next: Option<u64>) {
        self.translator.lock().forget(&mut |event| self.sink.take(event));
        self.order.restart(next);
        self.is_proven = true;
    }

    /// Tells of everything anew.
    pub(super) fn retell(&mut self) {
        self.translator.lock().retell(&mut |event| self.sink.take(event));
    }

    /// Tells of everything anew if the sink lacks any of it.
    pub(super) fn retell_missing(&mut self) {
        let is_lacking = self.translator.lock().workers().any(|worker| self.sink.lacks(worker));
        if is_lacking {
            self.retell();
        }
    }

    /// Tells whether a replay may have messages that come before this one.
    pub(super) fn is_behind(&self, message: &Message) -> bool {
        match self.order.judge(message.number) {
            Judged::Missing(_) => true,
            Judged::Restart => message.number > 0,
            // Nothing is known yet: a replay may have failed, as a publisher listens for those a
            // moment later than it connects.
            Judged::Next => self.order.next().is_none() && message.number > 0,
            Judged::Repeat => false,
        }
    }

    /// Takes in a message that came along the connection.
    pub(super) fn live(&mut self, message: &Message) {
        let Message { number, payload } = message;
        match self.order.judge(*number) {
            Judged::Next => {}
            Judged::Repeat => {
                self.translator.lock().stats_mut().repeats += 1;
                return self.order.heard(*number);
            }
            Judged::Missing(expected) => self.gap(expected, *number),
            Judged::Restart => self.restart(None),
        }
        self.order.heard(*number);
        self.order.took(*number, payload);
        self.translate(message);
    }

    /// Takes note of a message that is none.
    pub(super) fn malformed(&mut self, wrong: Malformed) {
        self.translator.lock().note(Problem::Malformed { number: None, wrong });
    }

    /// Returns the number to ask a replay from.
    pub(super) fn ask_from(&mut self) -> u64 {
        self.translator.lock().stats_mut().replays += 1;
        self.order.ask_from()
    }

    /// Takes note of the first answer to a replay, and tells whether to ask again: the publisher
    /// has restarted, and all that it said since is wanted.
    pub(super) fn prove(&mut self, first: Option<&Message>) -> bool {
        let proof = self.order.proof(first.map(|first| (first.number, &first.payload[..])));
        self.is_proven = true;
        if proof == Proof::Other {
            let is_from_start = self.order.ask_from() == 0;
            self.restart(Some(0));
            return !is_from_start;
        }
        false
    }

    /// Takes in a message that a replay brought back.
    pub(super) fn replayed(&mut self, message: &Message) {
        match self.order.next() {
            // The proof, or what came along the connection meanwhile.
            Some(next) if message.number < next => return,
            Some(next) if message.number > next => self.gap(next, message.number),
            _ => {}
        }
        self.translator.lock().stats_mut().replayed += 1;
        self.order.took_replayed(message.number, &message.payload);
        self.translate(message);
    }

    /// Takes note that a replay has come to its end, or has not.
    pub(super) fn replay_ended(&mut self, is_whole: bool) {
        if !is_whole {
            self.translator.lock().stats_mut().failed_replays += 1;
        } else if self.order.next().is_none() {
            // It has not said anything yet.
            self.order.restart(Some(0));
        }
    }

    fn gap(&mut self, expected: u64, found: u64) {
        let mut translator = self.translator.lock();
        translator.note(Problem::Gap { expected, found });
        translator.forget(&mut |event| self.sink.take(event));
    }

    fn restart(&mut self, next: Option<u64>) {
        let mut translator = self.translator.lock();
        translator.stats_mut().restarts += 1;
        translator.restart(&mut |event| self.sink.take(event));
        drop(translator);
        self.order.restart(next);
    }

    fn translate(&mut self, message: &Message) {
        match Batch::decode(&message.payload) {
            Ok(batch) => self.translator.lock().apply(&batch, &mut |event| self.sink.take(event)),
            // What it was to say is lost.
            Err(wrong) => {
                let mut translator = self.translator.lock();
                translator.note(Problem::Malformed { number: Some(message.number), wrong });
                translator.stats_mut().gaps += 1;
                translator.forget(&mut |event| self.sink.take(event));
            }
        }
    }
}

/// A translator that snapshots are taken of, at any moment between two events.
#[derive(Debug)]
pub(super) struct SharedTranslator(Mutex<Translator>);

impl SharedTranslator {
    pub(super) fn lock(&self) -> MutexGuard<'_, Translator> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A numbered message of a publisher.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Message {
    pub(super) number: u64,
    pub(super) payload: Vec<u8>,
}

impl Message {
    /// Reads a message as it is published: topic, number, payload.
    pub(super) fn published(parts: Vec<Vec<u8>>) -> Result<Self, Malformed> {
        if parts.len() != 3 {
            return Err(Malformed { what: "a message of other than three parts", at: 0 });
        }
        Self::last_of(parts)
    }

    /// Reads an answer to a replay: whatever is for the sockets, number, payload; `None` is the end.
    pub(super) fn replayed(parts: Vec<Vec<u8>>) -> Result<Option<Self>, Malformed> {
        if parts.last().is_some_and(Vec::is_empty) {
            return Ok(None);
        }
        Self::last_of(parts).map(Some)
    }

    fn last_of(mut parts: Vec<Vec<u8>>) -> Result<Self, Malformed> {
        let (payload, number) = (parts.pop(), parts.pop());
        let number = number.and_then(|number| number.try_into().ok().map(u64::from_be_bytes));
        match (number, payload) {
            // The last number ends replays.
            (Some(number), Some(payload)) if number < u64::MAX => Ok(Self { number, payload }),
            _ => Err(Malformed { what: "a message without a number of eight bytes", at: 0 }),
        }
    }
}
