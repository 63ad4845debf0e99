//! What feeds the index: events in order, with every gap, repeat and restart seen.

mod feed;
mod sequencer;

pub use feed::EventFeed;
pub use sequencer::{Sequencer, Verdict};
