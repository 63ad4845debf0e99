//! What is booked on whom, from the choice until the stream ends, what workers report, and how
//! fast they are.

mod booking;
mod counts;
mod exchange;
mod feed;
mod leases;
pub mod metrics;
mod pace;
mod replicas;
mod report;
mod row;
mod speed;
mod steps;
mod sync;
mod table;

pub use booking::Booking;
pub use exchange::{BookingExchange, ExchangeConfig};
pub use feed::LoadFeed;
pub use metrics::LoadMetrics;

pub(crate) use booking::expire;
pub(crate) use pace::{Pace, Paced};
pub(crate) use row::{Booked, Claim, Row};
pub(crate) use table::{Chunk, ROWS, Seen};

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
    /// Returns both together, of the same worker.
    #[inline(always)]
    pub(crate) fn plus(self, other: Self) -> Self {
        Self {
            requests: self.requests.saturating_add(other.requests),
            decoding: self.decoding.saturating_add(other.decoding),
            prefill_tokens: self.prefill_tokens.saturating_add(other.prefill_tokens),
            blocks: self.blocks.saturating_add(other.blocks),
            blocks_total: self.blocks_total.max(other.blocks_total),
        }
    }

    /// Returns what is left without a part of it.
    pub(crate) fn less(self, part: Self) -> Self {
        Self {
            requests: self.requests.saturating_sub(part.requests),
            decoding: self.decoding.saturating_sub(part.decoding),
            prefill_tokens: self.prefill_tokens.saturating_sub(part.prefill_tokens),
            blocks: self.blocks.saturating_sub(part.blocks),
            blocks_total: self.blocks_total,
        }
    }

    /// Returns what both have, of each count.
    pub(crate) fn shared(self, other: Self) -> Self {
        self.less(self.less(other))
    }

    /// Requests that have no token yet.
    pub(crate) fn waiting(&self) -> usize {
        self.requests.saturating_sub(self.decoding)
    }
}

#[cfg(test)]
mod tests;
