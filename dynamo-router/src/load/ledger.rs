use std::collections::HashMap;
use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use dynamo_core::protocol::WorkerId;

/// The load that one router has booked on a worker.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Load {
    /// Requests whose stream has not ended.
    pub requests: usize,
    /// Of these, the ones past their prefill.
    pub decoding: usize,
    /// Prompt tokens booked and not prefilled yet.
    pub prefill_tokens: usize,
    /// KV blocks that the requests' prompts take.
    pub blocks: usize,
}

/// Books and releases; cheap to clone.
#[derive(Debug, Clone, Default)]
pub(crate) struct Ledger(Arc<Mutex<HashMap<WorkerId, Load>>>);

impl Ledger {
    pub(crate) fn load(&self, worker: WorkerId) -> Load {
        self.lock().get(&worker).copied().unwrap_or_default()
    }

    pub(crate) fn requests(&self) -> usize {
        self.lock().values().map(|load| load.requests).sum()
    }

    /// Books a request that prefills `prefill_tokens` tokens, or none if it only decodes.
    pub(crate) fn book(&self, worker: WorkerId, prefill_tokens: usize, blocks: usize) -> Booking {
        let mut loads = self.lock();
        let load = loads.entry(worker).or_default();
        load.requests += 1;
        load.prefill_tokens += prefill_tokens;
        load.blocks += blocks;
        drop(loads);
        let ledger = self.clone();
        let mut booking = Booking { ledger, worker, prefill_tokens, blocks, decoding: false };
        if prefill_tokens == 0 {
            booking.prefill_done();
        }
        booking
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<WorkerId, Load>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// One request's load on one worker; dropping it releases the load.
///
/// It belongs into the response stream, so that it lives exactly as long as the work.
#[must_use = "dropping the booking releases the load"]
pub struct Booking {
    ledger: Ledger,
    worker: WorkerId,
    prefill_tokens: usize,
    blocks: usize,
    decoding: bool,
}

impl Booking {
    /// Records that the first token is there: the prompt no longer waits to be prefilled.
    pub fn prefill_done(&mut self) {
        if !std::mem::replace(&mut self.decoding, true) {
            let mut loads = self.ledger.lock();
            let load = loads.entry(self.worker).or_default();
            load.prefill_tokens -= std::mem::take(&mut self.prefill_tokens);
            load.decoding += 1;
        }
    }
}

impl Drop for Booking {
    fn drop(&mut self) {
        let mut loads = self.ledger.lock();
        let load = loads.entry(self.worker).or_default();
        load.requests -= 1;
        load.decoding -= usize::from(self.decoding);
        load.prefill_tokens -= self.prefill_tokens;
        load.blocks -= self.blocks;
        if load.requests == 0 {
            loads.remove(&self.worker);
        }
    }
}

impl fmt::Debug for Booking {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Booking").field("worker", &self.worker).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use dynamo_core::protocol::InstanceId;
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn the_ledger_is_the_sum_of_the_bookings_that_live(
            ops in prop::collection::vec((0..3u64, 0..100usize, 0..10usize, any::<u8>()), 0..60),
        ) {
            let ledger = Ledger::default();
            let mut bookings: Vec<Booking> = Vec::new();
            for (worker, tokens, blocks, choice) in ops {
                let at = usize::from(choice) % (bookings.len() + 1);
                match (choice % 3, bookings.len() > at) {
                    (0, true) => drop(bookings.swap_remove(at)),
                    (1, true) => bookings[at].prefill_done(),
                    _ => bookings.push(ledger.book(WorkerId::new(InstanceId(worker)), tokens, blocks)),
                }
                for worker in (0..3).map(|id| WorkerId::new(InstanceId(id))) {
                    let of = bookings.iter().filter(|booking| booking.worker == worker);
                    let sum = of.fold(Load::default(), |sum, booking| Load {
                        requests: sum.requests + 1,
                        decoding: sum.decoding + usize::from(booking.decoding),
                        prefill_tokens: sum.prefill_tokens + booking.prefill_tokens,
                        blocks: sum.blocks + booking.blocks,
                    });
                    prop_assert_eq!(ledger.load(worker), sum);
                }
            }
            bookings.clear();
            prop_assert_eq!(ledger.requests(), 0);
            prop_assert!(ledger.lock().is_empty());
        }
    }
}
