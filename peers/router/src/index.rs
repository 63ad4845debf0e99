//! What is asked of every index.

use std::time::Duration;

use crate::turn::timed;
use crate::workload::{Event, Prompt, Workload};

pub trait Index {
    /// Makes events ready in the form in which the index takes them.
    fn prepare(&mut self, workload: &Workload, events: &[Event]);

    /// Takes in what was prepared, until whoever looks it up sees it.
    fn apply(&mut self);

    /// Takes in, empty as it is, what all workers hold, in the shortest way that it has; returns
    /// how long that took.
    fn recover(&mut self, held: &Workload) -> Duration {
        self.prepare(held, &held.events);
        timed(|| self.apply())
    }

    /// Does what it puts off: there is time.
    fn tidy(&mut self) {}

    /// Returns what looks prompts up.
    fn reader(&self) -> Box<dyn Reader>;

    /// Returns what does so in another thread while events come in, if that can be.
    fn reader_elsewhere(&self) -> Option<Box<dyn Reader + Send>> {
        None
    }
}

pub trait Reader {
    /// Takes a prompt's hashes, as it wants them.
    fn ask(&mut self, prompt: &Prompt);

    /// Finds who holds how much of that prompt: this is what is timed.
    fn find(&mut self);

    /// Passes to `each` the workers that hold some of it, and how many blocks from the first on.
    fn found(&self, each: &mut dyn FnMut(usize, usize));
}

/// One who takes turns.
#[derive(Clone, Copy)]
pub struct Contender {
    pub name: &'static str,
    pub make: fn() -> Box<dyn Index>,
    /// Readers in any thread look up what they are asked again and again, with no channel to
    /// another.
    pub is_in_place: bool,
    /// Where there are millions of blocks, only its turns are taken, and nothing else measured.
    pub is_slow: bool,
}
