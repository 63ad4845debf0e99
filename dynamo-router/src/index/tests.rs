use dynamo_core::protocol::{BlockSize, CacheNamespace, PromptBlocks};
use proptest::prelude::*;

use super::reference::Reference;
use super::*;

const WORKERS: usize = 130;

#[derive(Debug, Clone)]
enum Op {
    Store { worker: usize, tier: Tier, prompt: u32, from: usize, to: usize },
    Remove { worker: usize, tier: Tier, prompt: u32, from: usize, to: usize },
    Clear { worker: usize },
}

fn op() -> impl Strategy<Value = Op> {
    // Few distinct workers in different bitset words, so that they meet on the same blocks.
    let worker = prop_oneof![Just(0usize), Just(1), Just(70), Just(WORKERS - 1)];
    let tier = prop_oneof![Just(Tier::Host), Just(Tier::Remote)];
    let run = (worker.clone(), tier, 0..8u32, 0..6usize, 0..6usize);
    prop_oneof![
        4 => run.clone().prop_map(|(worker, tier, prompt, from, to)| {
            Op::Store { worker, tier, prompt, from, to }
        }),
        2 => run.prop_map(|(worker, tier, prompt, from, to)| {
            Op::Remove { worker, tier, prompt, from, to }
        }),
        1 => worker.prop_map(|worker| Op::Clear { worker }),
    ]
}

fn worker(id: usize) -> Slot {
    Slot::from_index(id).unwrap()
}

/// One of eight prompts of six blocks that share prefixes of different lengths.
fn prompt(path: u32) -> Vec<SequenceHash> {
    let tokens: Vec<u32> =
        (0..6).map(|level| if level < 3 { path >> (2 - level) & 1 } else { level }).collect();
    PromptBlocks::new(&CacheNamespace::default(), BlockSize::new(1).unwrap(), &tokens)
        .sequence()
        .to_vec()
}

proptest! {
    #[test]
    fn the_index_agrees_with_the_naive_model(ops in prop::collection::vec(op(), 0..120)) {
        let (mut index, mut reference) = (PrefixIndex::default(), Reference::default());
        // Takes every slot once, so that the interesting workers stand in different words.
        (0..WORKERS).for_each(|id| index.store(worker(id), Tier::Host, None, &[]));
        let mut matches = Matches::default();
        for op in ops {
            match op {
                Op::Store { worker: id, tier, prompt: path, from, to } => {
                    let hashes = prompt(path)[from.min(to)..to].to_vec();
                    index.store(worker(id), tier, None, &hashes);
                    reference.store(worker(id), tier, &hashes);
                }
                Op::Remove { worker: id, tier, prompt: path, from, to } => {
                    let hashes = prompt(path)[from.min(to)..to].to_vec();
                    index.remove(worker(id), tier, &hashes);
                    reference.remove(worker(id), tier, &hashes);
                }
                Op::Clear { worker: id } => {
                    index.clear(worker(id));
                    reference.clear(worker(id));
                }
            }
            prop_assert_eq!(index.len(), reference.len());
            for path in 0..8 {
                let hashes = prompt(path);
                index.reader().find(&hashes, &mut matches);
                for id in [0, 1, 70, WORKERS - 1] {
                    prop_assert_eq!(matches.depth(worker(id)), reference.depth(worker(id), &hashes));
                    prop_assert_eq!(index.held(worker(id)), reference.held(worker(id)));
                }
                prop_assert!(matches.iter().all(|(_, depth)| depth > 0));
            }
        }
        (0..WORKERS).for_each(|id| index.clear(worker(id)));
        prop_assert!(index.is_empty());
    }
}

#[test]
fn a_prompt_without_full_blocks_matches_nobody() {
    let mut index = PrefixIndex::default();
    index.store(worker(1), Tier::Host, None, &prompt(0));
    let mut matches = Matches::default();
    index.reader().find(&prompt(0), &mut matches);
    assert_eq!(matches.iter().collect::<Vec<_>>(), [(worker(1), 6)]);
    index.reader().find(&[], &mut matches);
    assert_eq!(matches.iter().count(), 0);
}
