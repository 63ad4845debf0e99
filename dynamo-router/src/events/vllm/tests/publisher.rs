//! A publisher of an engine's events, without its sockets.

use std::collections::VecDeque;

use super::engine::{Act, Engine};
use super::wire::{FORM, Told, pack};
use crate::events::vllm::intake::Message;

#[derive(Debug)]
pub(super) struct Publisher {
    pub(super) engine: Engine,
    block_size: u32,
    /// The rank that its messages say.
    pub(super) rank: u32,
    /// The number of the next message.
    number: u64,
    /// Messages of all lives: no two say the same time.
    time: f64,
    buffer_max: usize,
    pub(super) buffer: VecDeque<Message>,
}

impl Publisher {
    /// Keeps so many messages for replays.
    pub(super) fn new(block_size: u32, buffer_max: usize) -> Self {
        let (engine, buffer) = (Engine::new(block_size), VecDeque::new());
        Self { engine, block_size, rank: 0, number: 0, time: 0.0, buffer_max, buffer }
    }

    /// Makes a message of what the engine does.
    pub(super) fn act(&mut self, act: &Act) -> Message {
        let told = self.engine.act(act);
        self.message(told.as_slice())
    }

    pub(super) fn message(&mut self, told: &[Told]) -> Message {
        let mut payload = pack(FORM, Some(self.rank), told);
        payload[2..10].copy_from_slice(&self.time.to_be_bytes());
        self.numbered(payload)
    }

    /// Gives the next number to what is packed already.
    pub(super) fn numbered(&mut self, payload: Vec<u8>) -> Message {
        let message = Message { number: self.number, payload };
        (self.number, self.time) = (self.number + 1, self.time + 1.0);
        self.buffer.push_back(message.clone());
        if self.buffer.len() > self.buffer_max {
            self.buffer.pop_front();
        }
        message
    }

    pub(super) fn restart(&mut self) {
        (self.engine, self.number) = (Engine::new(self.block_size), 0);
        self.buffer.clear();
    }
}
