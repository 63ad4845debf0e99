//! What is booked on whom, from the choice until the stream ends, what workers report, and how
//! fast they are.

mod booking;
mod leases;
mod pace;
mod report;
mod row;
mod speed;
mod steps;
mod sync;

pub use booking::Booking;

pub(crate) use booking::expire;
pub(crate) use pace::{Pace, Paced};
pub(crate) use row::{Booked, Claim, Row};

/// How busy a worker is: what the router has booked on it, corrected by what it reports.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Load {
    /// Requests whose stream has not ended.
    pub requests: usize,
    /// Of these, the ones past their prefill.
    pub decoding: usize,
    /// Prompt tokens that are not prefilled yet.
    pub prefill_tokens: usize,
    /// KV blocks that the requests take; of those booked, their prompts.
    pub blocks: usize,
    /// KV blocks that the worker has in all; 0 if it has not said so.
    pub blocks_total: usize,
}

impl Load {
    /// Requests that have no token yet.
    pub(crate) fn waiting(&self) -> usize {
        self.requests.saturating_sub(self.decoding)
    }
}

#[cfg(test)]
mod tests;
