//! Our index.

use std::time::Duration;

use dynamo_core::protocol::{InstanceId, SequenceHash, Tier, WorkerId};
use dynamo_router::Slot;
use dynamo_router::index::{IndexConfig, Matches, PrefixIndex, PrefixReader};

use crate::index::{Index, Reader};
use crate::turn::timed;
use crate::workload::{Change, Event, Prompt, Workload};

#[derive(Default)]
pub struct Ours {
    index: PrefixIndex,
    prepared: Vec<(Slot, Ready)>,
}

enum Ready {
    Store(Option<SequenceHash>, Vec<SequenceHash>),
    Remove(Vec<SequenceHash>),
}

pub fn make() -> Box<dyn Index> {
    Box::new(Ours::default())
}

impl Index for Ours {
    fn prepare(&mut self, workload: &Workload, events: &[Event]) {
        self.prepared = events
            .iter()
            .map(|event| {
                let slot = Slot::from_index(event.worker).expect("so many workers there can be");
                let ready = match event.change {
                    Change::Stored { prompt, from, to } => {
                        let hashes = &workload.prompts[prompt].sequence;
                        let parent = from.checked_sub(1).map(|parent| hashes[parent]);
                        Ready::Store(parent, hashes[from..to].to_vec())
                    }
                    Change::Removed { from, to } => {
                        Ready::Remove(workload.removed[from..to].to_vec())
                    }
                };
                (slot, ready)
            })
            .collect();
    }

    fn apply(&mut self) {
        for (slot, ready) in std::mem::take(&mut self.prepared) {
            match ready {
                Ready::Store(parent, hashes) => {
                    self.index.store(slot, Tier::Device, parent, &hashes);
                }
                Ready::Remove(hashes) => self.index.remove(slot, Tier::Device, &hashes),
            }
        }
    }

    fn recover(&mut self, held: &Workload) -> Duration {
        self.prepare(held, &held.events);
        self.apply();
        let bytes = self.index.snapshot(|slot| Some(InstanceId(slot.index() as u64).into()));
        let slot_of = |worker: WorkerId| Slot::from_index(usize::try_from(worker.instance.0).ok()?);
        let mut restored = PrefixIndex::default();
        let took = timed(|| {
            restored = PrefixIndex::restore(IndexConfig::default(), &bytes, slot_of)
                .expect("as it was written");
        });
        self.index = restored;
        took
    }

    fn reader(&self) -> Box<dyn Reader> {
        Box::new(Finder::new(self.index.reader()))
    }

    fn reader_elsewhere(&self) -> Option<Box<dyn Reader + Send>> {
        Some(Box::new(Finder::new(self.index.reader())))
    }
}

struct Finder {
    reader: PrefixReader,
    hashes: Vec<SequenceHash>,
    matches: Matches,
}

impl Finder {
    fn new(reader: PrefixReader) -> Self {
        Self { reader, hashes: Vec::new(), matches: Matches::default() }
    }
}

impl Reader for Finder {
    fn ask(&mut self, prompt: &Prompt) {
        self.hashes.clone_from(&prompt.sequence);
    }

    fn find(&mut self) {
        self.reader.find(&self.hashes, &mut self.matches);
    }

    fn found(&self, each: &mut dyn FnMut(usize, usize)) {
        self.matches.iter().for_each(|(slot, blocks)| each(slot.index(), blocks));
    }
}
