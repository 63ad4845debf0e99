use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::sync::Arc;

use dynamo_core::protocol::{KvChange, KvEvent, SequenceHash, WorkerId};

use super::KvRouter;
use crate::events::{Sequencer, Verdict};
use crate::index::PrefixIndex;
use crate::workers::Seat;

/// What workers say of their caches, on its way into the index.
#[derive(Debug, Default)]
pub(super) struct Intake {
    pub(super) index: PrefixIndex,
    pub(super) publishers: HashMap<WorkerId, Publisher>,
    /// The hashes of the event that is applied.
    hashes: Vec<SequenceHash>,
    pub(super) events_total: u64,
    pub(super) gaps_total: u64,
}

/// A worker that says something; the index knows it by its seat's slot.
#[derive(Debug)]
pub(super) struct Publisher {
    sequencer: Sequencer,
    seat: Arc<Seat>,
}

impl KvRouter {
    /// Takes in what a worker says of its cache.
    pub fn apply(&self, event: &KvEvent) {
        let mut intake = self.intake();
        let intake = &mut *intake;
        let worker = event.worker;
        intake.events_total += 1;
        let publisher = match intake.publishers.entry(worker) {
            Entry::Occupied(known) => known.into_mut(),
            Entry::Vacant(place) => {
                let Some(seat) = self.hear_of(worker) else {
                    return tracing::warn!(%worker, "more workers than slots: its cache is not seen");
                };
                place.insert(Publisher { sequencer: Sequencer::default(), seat })
            }
        };
        let slot = publisher.seat.slot();
        match publisher.sequencer.judge(event) {
            Verdict::Ignore => return,
            Verdict::Apply => {}
            Verdict::Restart => intake.index.clear(slot),
            Verdict::Gap => {
                intake.gaps_total += 1;
                intake.index.clear(slot);
            }
        }
        match &event.change {
            KvChange::BlockStored { parent, blocks, tier } => {
                intake.hashes.clear();
                intake.hashes.extend(blocks.iter().map(|block| block.sequence));
                intake.index.store(slot, *tier, *parent, &intake.hashes);
            }
            KvChange::BlockRemoved { sequence_hashes, tier } => {
                intake.index.remove(slot, *tier, sequence_hashes);
            }
            KvChange::AllBlocksCleared => intake.index.clear(slot),
            _ => tracing::warn!(%worker, "KV event of an unknown kind"),
        }
    }
}

impl Intake {
    /// Forgets what `worker` has said.
    pub(super) fn forget(&mut self, worker: WorkerId) {
        if let Some(publisher) = self.publishers.remove(&worker) {
            self.index.clear(publisher.seat.slot());
        }
    }
}
