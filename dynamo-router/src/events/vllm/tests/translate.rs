use dynamo_core::protocol::{
    BlockSize, CacheNamespace, KvChange, KvEvent, PromptBlocks, SequenceHash, Tier,
};
use proptest::prelude::*;

use super::engine::{Act, Engine, Fold, acts};
use super::wire::{FORM, Told, pack};
use super::{WORKER, config};
use crate::events::vllm::batch::{Batch, EngineHash};
use crate::events::vllm::{Problem, Translator};

fn translator(block_size: u32) -> Translator {
    Translator::new(config("tcp://*:1", block_size))
}

fn tell(translator: &mut Translator, told: &[Told]) -> Vec<KvEvent> {
    let mut events = Vec::new();
    let batch = Batch::decode(&pack(FORM, None, told)).unwrap();
    translator.apply(&batch, &mut |event| events.push(event));
    events
}

fn stored(hashes: &[u64], parent: Option<u64>, tokens: Vec<u32>, block_size: u32) -> Told {
    Told::Stored {
        hashes: hashes.iter().map(|hash| EngineHash(*hash)).collect(),
        parent: parent.map(EngineHash),
        tokens,
        block_size,
        adapter: None,
        medium: "GPU",
        keys: Vec::new(),
    }
}

fn removed(hash: u64) -> Told {
    Told::Removed { hashes: vec![EngineHash(hash)], medium: "GPU" }
}

/// Returns the hashes of all blocks that events say were stored.
fn hashes(events: &[KvEvent]) -> Vec<SequenceHash> {
    let blocks = events.iter().flat_map(|event| match &event.change {
        KvChange::BlockStored { blocks, .. } => &blocks[..],
        _ => &[],
    });
    blocks.map(|block| block.sequence).collect()
}

fn prompt(namespace: &CacheNamespace, block_size: u32, tokens: &[u32]) -> Vec<SequenceHash> {
    let block_size = BlockSize::new(block_size).unwrap();
    PromptBlocks::new(namespace, block_size, tokens).sequence().to_vec()
}

proptest! {
    #[test]
    fn the_router_is_told_what_the_engine_holds_whatever_the_block_sizes(
        (engine, router) in prop::sample::select(
            vec![(4, 4), (8, 4), (12, 4), (4, 8), (2, 8), (1, 4), (3, 12)]),
        acts in acts(60),
    ) {
        let (mut translator, mut fold) = (translator(router), Fold::default());
        let mut engine = Engine::new(engine);
        for act in &acts {
            let Some(told) = engine.act(act) else { continue };
            let batch = Batch::decode(&pack(FORM, None, &[told])).unwrap();
            translator.apply(&batch, &mut |event| fold.take(WORKER, &event));
            prop_assert_eq!(&translator.stats().last_problem, &None);
            prop_assert_eq!(&fold.known, &engine.truth(BlockSize::new(router).unwrap()));
        }
        let (truth, mut anew) = (fold.known.clone(), Fold::default());
        translator.retell(&mut |event| {
            if let KvChange::BlockStored { parent: Some(parent), tier, .. } = &event.change {
                let parent = (*tier, *parent);
                assert!(anew.known.contains(&parent) || !truth.contains(&parent), "parents first");
            }
            fold.take(WORKER, &event);
            anew.take(WORKER, &KvEvent { epoch: 0, ..event });
        });
        prop_assert_eq!((&fold.known, &anew.known), (&truth, &truth));
    }

    #[test]
    fn what_is_remembered_goes_with_what_the_engine_holds(acts in acts(40), join: bool) {
        let mut translator = translator(if join { 8 } else { 4 });
        let mut engine = Engine::new(4);
        for act in &acts {
            let told = engine.act(act);
            tell(&mut translator, told.as_slice());
        }
        while let Some(told) = engine.act(&Act::Remove { which: 0 }) {
            tell(&mut translator, &[told]);
        }
        prop_assert_eq!(translator.known_blocks(), 0);
    }
}

#[test]
fn a_run_behind_an_unknown_block_is_skipped_and_counted() {
    let mut translator = translator(4);
    let run = stored(&[2], Some(1), vec![5; 4], 4);
    assert_eq!(tell(&mut translator, std::slice::from_ref(&run)), []);
    let problem = Problem::UnknownParent { parent: EngineHash(1) };
    assert_eq!(translator.stats().last_problem, Some(problem));
    assert_eq!(translator.stats().unknown_parents, 1);
    let events = tell(&mut translator, &[stored(&[1], None, vec![4; 4], 4), run]);
    let tokens = [[4; 4], [5; 4]].concat();
    assert_eq!(hashes(&events), prompt(&CacheNamespace::model("m"), 4, &tokens));
}

#[test]
fn block_sizes_that_do_not_fit_are_a_problem_with_a_name() {
    let mut translator = translator(16);
    assert_eq!(tell(&mut translator, &[stored(&[1], None, vec![5; 24], 24)]), []);
    let size = |tokens| BlockSize::new(tokens).unwrap();
    let problem = Problem::BlockSizeMismatch { engine: size(24), router: size(16) };
    assert_eq!(problem.to_string(), "blocks of 24 tokens fit no blocks of 16");
    assert_eq!(translator.stats().last_problem, Some(problem));
    tell(&mut translator, &[stored(&[1, 2], None, vec![5; 31], 16)]);
    let problem = Problem::TokenCount { tokens: 31, blocks: 2, block_size: size(16) };
    assert_eq!(translator.stats().last_problem, Some(problem));
    // A size that changes on the way to a router's block.
    tell(
        &mut translator,
        &[stored(&[3], None, vec![5; 8], 8), stored(&[4], Some(3), vec![5; 16], 16)],
    );
    let problem = Problem::BlockSizeMismatch { engine: size(16), router: size(16) };
    assert_eq!(translator.stats().last_problem, Some(problem));
    assert_eq!(translator.stats().misfits, 3);
}

#[test]
fn more_blocks_than_are_remembered_are_left_out() {
    let mut translator = Translator::new(config("tcp://*:1", 4).with_blocks_max(2));
    let events = tell(&mut translator, &[stored(&[1, 2, 3], None, vec![5; 12], 4)]);
    assert_eq!(hashes(&events).len(), 2);
    assert_eq!(translator.stats().last_problem, Some(Problem::TooManyBlocks { limit: 2 }));
    let events = tell(&mut translator, &[removed(2), stored(&[3], Some(1), vec![6; 4], 4)]);
    assert_eq!(hashes(&events).len(), 1, "there is room again");
}

#[test]
fn a_block_that_two_requests_computed_is_there_until_both_copies_are_gone() {
    let mut translator = translator(4);
    let run = stored(&[1], None, vec![5; 4], 4);
    assert_eq!(tell(&mut translator, &[run.clone(), run]).len(), 1);
    assert_eq!(tell(&mut translator, &[removed(1)]), []);
    assert_eq!(tell(&mut translator, &[removed(1)]).len(), 1);
}

#[test]
fn salts_are_extras_of_the_whole_sequence() {
    let mut translator = translator(4);
    let salted = |keys: Vec<Vec<&'static str>>, hashes: &[u64], tokens| {
        let mut told = stored(hashes, None, tokens, 4);
        if let Told::Stored { keys: of, .. } = &mut told {
            *of = keys;
        }
        told
    };
    let tokens: Vec<u32> = (0..8).collect();
    let plain = tell(&mut translator, &[stored(&[1, 2], None, tokens.clone(), 4)]);
    let events = tell(&mut translator, &[salted(vec![vec!["s"], vec![]], &[3, 4], tokens.clone())]);
    let namespace = CacheNamespace { extra: b"s".to_vec(), ..CacheNamespace::model("m") };
    assert_eq!(hashes(&events), prompt(&namespace, 4, &tokens));
    assert_ne!(hashes(&plain), hashes(&events));
    // An image from the second block on leaves the first one as it is.
    let image = salted(vec![vec![], vec!["image"]], &[1, 6], tokens.clone());
    tell(&mut translator, &[removed(1), removed(2)]);
    let events = tell(&mut translator, &[image]);
    assert_eq!(hashes(&events)[0], hashes(&plain)[0]);
    assert_ne!(hashes(&events)[1], hashes(&plain)[1]);
    // Ever so many images are a digest.
    let long: &'static str = "0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef";
    let keys = vec![vec![long, "a", long, "b", long, "c", long]; 2];
    assert_eq!(hashes(&tell(&mut translator, &[salted(keys, &[7, 8], tokens)])).len(), 2);
}

#[test]
fn layers_that_read_a_window_are_left_out_and_so_are_other_groups() {
    let mut translator = translator(4);
    let mut tell = |group, kind: &str| {
        let mut batch =
            Batch::decode(&pack(FORM, None, &[stored(&[1], None, vec![5; 4], 4)])).unwrap();
        if let Some(crate::events::vllm::Event::BlockStored(run)) = batch.events.first_mut() {
            run.group.index = Some(group);
            run.group.is_windowed = kind == "window";
        }
        let mut count = 0;
        translator.apply(&batch, &mut |_| count += 1);
        count
    };
    assert_eq!(
        [tell(0, "window"), tell(1, "full"), tell(2, "full"), tell(1, "full")],
        [0, 1, 0, 0]
    );
    assert_eq!(translator.stats().other_groups, 2);
    assert_eq!(super::translate::tell(&mut translator, &[removed(1)]), [], "of two copies");
}

#[test]
fn ranks_are_workers_with_numbers_of_their_own() {
    let mut translator = translator(4);
    let mut seen = Vec::new();
    for rank in [3, 0, 3] {
        let told = [stored(&[seen.len() as u64], None, vec![5; 4], 4)];
        let batch = Batch::decode(&pack(FORM, Some(rank), &told)).unwrap();
        translator.apply(&batch, &mut |event| seen.push((event.worker.rank, event.seq)));
    }
    assert_eq!(seen, [(3, 0), (0, 0), (3, 1)]);
    translator.forget(&mut |event| seen.push((event.worker.rank, event.seq)));
    translator.restart(&mut |event| {
        assert_eq!((event.epoch, event.change), (1, KvChange::AllBlocksCleared));
        seen.push((event.worker.rank, event.seq));
    });
    assert_eq!(seen[3..], [(0, 1), (3, 2), (0, 0), (3, 0)]);
}

#[test]
fn a_rank_beyond_all_ranks_is_refused() {
    let mut translator = translator(4);
    for rank in 0..1025 {
        translator.apply(&Batch::decode(&pack(FORM, Some(rank), &[])).unwrap(), &mut |event| {
            panic!("{event:?}")
        });
    }
    assert_eq!(translator.stats().last_problem, Some(Problem::TooManyRanks { limit: 1024 }));
}

#[test]
fn blocks_without_tokens_are_placed_if_they_are_known() {
    let mut translator = translator(4);
    let mut offloaded = stored(&[1, 9], None, Vec::new(), 4);
    if let Told::Stored { medium, .. } = &mut offloaded {
        *medium = "CPU";
    }
    let events = tell(&mut translator, &[stored(&[1], None, vec![5; 4], 4), offloaded, removed(1)]);
    let tiers: Vec<_> = events
        .iter()
        .map(|event| match &event.change {
            KvChange::BlockStored { tier, .. } => (true, *tier),
            KvChange::BlockRemoved { tier, .. } => (false, *tier),
            other => panic!("{other:?}"),
        })
        .collect();
    assert_eq!(tiers, [(true, Tier::Device), (true, Tier::Host), (false, Tier::Device)]);
    assert_eq!(translator.stats().unknown_blocks, 1);
}
