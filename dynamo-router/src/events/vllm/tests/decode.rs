use dynamo_core::protocol::{BlockSize, Tier};
use proptest::prelude::*;

use super::corpus::{inputs, mutate};
use super::wire::{Form, Hash, Told, pack};
use crate::events::vllm::batch::{Batch, EngineHash, Event, Group};
use crate::events::vllm::fuzz_vllm_message;

/// In the format of vLLM 0.32: maps, hashes as numbers; packed by `msgspec`.
const MAPS: &str = "93cb41da492040100000938ba474797065ab426c6f636b53746f726564ac626c6f636b5f68617368\
    657392cffedcba9876543210cf0123456789abcdefb1706172656e745f626c6f636b5f68617368c0a9746f6b656e5f\
    6964739401ccc8cd012cce00011170aa626c6f636b5f73697a6502a76c6f72615f6964c0a66d656469756da3475055\
    a96c6f72615f6e616d65c0aa65787472615f6b65797392c0c0a967726f75705f69647800b26b765f63616368655f73\
    7065635f6b696e64ae66756c6c5f617474656e74696f6e84a474797065ac426c6f636b52656d6f766564ac626c6f63\
    6b5f6861736865739107a66d656469756da3435055a967726f75705f6964780081a474797065b0416c6c426c6f636b\
    73436c656172656403";

/// In the format of older versions: arrays, hashes as bytes and numbers below zero.
const ARRAYS: &str = "93cb41da492040200000939cab426c6f636b53746f72656492c420000102030405060708090a0b\
    0c0d0e0f101112131415161718191a1b1c1d1e1ffec4200102030405060708090a0b0c0d0e0f101112131415161718\
    191a1b1c1d1e1f2094050607080204a3475055a4706f65749292a4706f6574a473616c7491a4706f6574c0c0c094ac\
    426c6f636b52656d6f76656491c420000102030405060708090a0b0c0d0e0f101112131415161718191a1b1c1d1e1f\
    c0c091b0416c6c426c6f636b73436c6561726564c0";

fn bytes(hex: &str) -> Vec<u8> {
    let digits: Vec<u8> = hex.bytes().filter(u8::is_ascii_hexdigit).collect();
    let pairs = digits.chunks(2).map(|pair| str::from_utf8(pair).unwrap());
    pairs.map(|pair| u8::from_str_radix(pair, 16).unwrap()).collect()
}

#[test]
fn maps_with_numbers_are_read() {
    let batch = Batch::decode(&bytes(MAPS)).unwrap();
    assert_eq!(batch.rank, Some(3));
    let [Event::BlockStored(run), Event::BlockRemoved(removed), Event::AllBlocksCleared] =
        &batch.events[..]
    else {
        panic!("{batch:?}");
    };
    assert_eq!(run.hashes, [EngineHash(0xfedc_ba98_7654_3210), EngineHash(0x0123_4567_89ab_cdef)]);
    assert_eq!((run.parent, &run.tokens[..]), (None, &[1, 200, 300, 70_000][..]));
    assert_eq!((run.block_size, run.tier), (BlockSize::new(2).unwrap(), Tier::Device));
    assert_eq!((run.adapter.as_str(), run.extra.len()), ("", 0));
    assert_eq!(run.group, Group { index: Some(0), is_windowed: false });
    assert_eq!((&removed.hashes[..], removed.tier), (&[EngineHash(7)][..], Tier::Host));
}

#[test]
fn arrays_with_bytes_are_read() {
    let batch = Batch::decode(&bytes(ARRAYS)).unwrap();
    assert_eq!(batch.rank, None);
    let [Event::BlockStored(run), Event::BlockRemoved(removed), Event::AllBlocksCleared] =
        &batch.events[..]
    else {
        panic!("{batch:?}");
    };
    let first = EngineHash(0x1819_1a1b_1c1d_1e1f);
    assert_eq!(run.hashes, [first, EngineHash(u64::MAX - 1)]);
    assert_eq!(run.parent, Some(EngineHash(0x191a_1b1c_1d1e_1f20)));
    assert_eq!((&run.tokens[..], run.adapter.as_str()), (&[5, 6, 7, 8][..], "poet"));
    let key = |key: &str| key.as_bytes().to_vec();
    assert_eq!(run.extra, [(0, vec![key("poet"), key("salt")]), (1, vec![key("poet")])]);
    assert_eq!((&removed.hashes[..], removed.tier), (&[first][..], Tier::Device));
}

#[test]
fn no_message_that_is_cut_off_is_read() {
    for message in [bytes(MAPS), bytes(ARRAYS)] {
        for len in 0..message.len() {
            let wrong = Batch::decode(&message[..len]).unwrap_err();
            assert!(wrong.at <= len, "{wrong}");
        }
        let longer = [&message[..], &[0xc0]].concat();
        assert_eq!(Batch::decode(&longer).unwrap_err().what, "bytes behind the end");
    }
}

#[test]
fn lengths_are_not_believed() {
    // Four billion events, hashes, tokens; and a hundred thousand arrays in one another.
    for claim in ["92c0ddffffffff", "92c09192ab426c6f636b53746f726564ddffffffff", "dfffffffff"] {
        assert_eq!(Batch::decode(&bytes(claim)).unwrap_err().what, "more elements than bytes");
    }
    let nested = [&[0x91; 100_000][..], &[0xc0]].concat();
    Batch::decode(&nested).unwrap();
}

#[test]
fn what_is_not_known_is_passed_over() {
    let other = Form { is_map: true, hash: Hash::Unsigned };
    let batch = Batch::decode(&pack(other, Some(1), &[Told::Other, Told::Cleared])).unwrap();
    let unknown = Event::Unknown("BlockMigrated".into());
    assert_eq!(batch.events, [unknown.clone(), Event::AllBlocksCleared]);
    let arrays = Form { is_map: false, ..other };
    let batch = Batch::decode(&pack(arrays, None, &[Told::Other])).unwrap();
    assert_eq!((batch.rank, &batch.events[..]), (None, &[unknown][..]));
    // A batch as a map, as later versions send it: ts, events, and a field to come.
    let batch = Batch::decode(&bytes("83a27473cb0000000000000000a474696e79c3a66576656e747390"));
    assert_eq!(batch.unwrap().events, []);
}

#[test]
fn media_are_tiers() {
    let tier = |medium| {
        let told = Told::Removed { hashes: Vec::new(), medium };
        let form = Form { is_map: false, hash: Hash::Unsigned };
        let batch = Batch::decode(&pack(form, None, &[told])).unwrap();
        let [Event::BlockRemoved(removed)] = &batch.events[..] else { panic!("{batch:?}") };
        removed.tier
    };
    assert_eq!(["GPU", "gpu", "HBM"].map(tier), [Tier::Device; 3]);
    assert_eq!(["CPU", "CPU_PINNED", "dram"].map(tier), [Tier::Host; 3]);
    assert_eq!(["STORAGE", "DISK", "FS"].map(tier), [Tier::Disk; 3]);
    assert_eq!(["", "LAKE", "\u{e9}\u{e9}"].map(tier), [Tier::Remote; 3]);
}

#[test]
fn no_input_of_the_corpus_breaks_anything_nor_does_a_mutation_of_it() {
    let inputs = inputs("vllm_message");
    inputs.iter().for_each(|input| fuzz_vllm_message(input));
    mutate(&inputs, 2_000, fuzz_vllm_message);
}

fn hashes() -> impl Strategy<Value = Vec<EngineHash>> {
    prop::collection::vec(any::<u64>().prop_map(EngineHash), 0..4)
}

fn told() -> impl Strategy<Value = Told> {
    let medium = prop::sample::select(vec!["GPU", "CPU", "STORAGE"]);
    let adapter = prop::sample::select(vec![None, Some("a"), Some("b")]);
    let keys = prop::collection::vec(prop::collection::vec(Just("salt"), 1..3), 0..3);
    let parent = any::<Option<u64>>().prop_map(|hash| hash.map(EngineHash));
    let tokens = prop::collection::vec(any::<u32>(), 0..40);
    let stored = (hashes(), parent, tokens, 1..=u32::MAX, adapter, medium.clone(), keys);
    let stored = stored.prop_map(|(hashes, parent, tokens, block_size, adapter, medium, keys)| {
        Told::Stored { hashes, parent, tokens, block_size, adapter, medium, keys }
    });
    let removed = (hashes(), medium).prop_map(|(hashes, medium)| Told::Removed { hashes, medium });
    prop_oneof![4 => stored, 2 => removed, 1 => Just(Told::Cleared), 1 => Just(Told::Other)]
}

proptest! {
    #[test]
    fn whatever_the_form_the_same_is_read(
        events in prop::collection::vec(told(), 0..5), rank: Option<u32>,
    ) {
        let mut read = Vec::new();
        for is_map in [false, true] {
            for hash in [Hash::Unsigned, Hash::Signed, Hash::Bytes] {
                read.push(Batch::decode(&pack(Form { is_map, hash }, rank, &events)).unwrap());
            }
        }
        prop_assert_eq!(read[0].events.len(), events.len());
        for (told, event) in events.iter().zip(&read[0].events) {
            match (told, event) {
                (Told::Stored { hashes, parent, tokens, .. }, Event::BlockStored(run)) => {
                    prop_assert_eq!((hashes, parent, tokens), (&run.hashes, &run.parent, &run.tokens));
                }
                (Told::Removed { hashes, .. }, Event::BlockRemoved(removed)) => {
                    prop_assert_eq!(hashes, &removed.hashes);
                }
                (Told::Cleared, Event::AllBlocksCleared) | (Told::Other, Event::Unknown(_)) => {}
                _ => panic!("{told:?} became {event:?}"),
            }
        }
        prop_assert!(read.iter().all(|other| *other == read[0]));
    }

    #[test]
    fn no_bytes_break_anything(bytes in prop::collection::vec(any::<u8>(), 0..300)) {
        fuzz_vllm_message(&bytes);
    }

    #[test]
    fn no_change_of_a_message_breaks_anything(
        is_map: bool, at in any::<prop::sample::Index>(), byte: u8,
    ) {
        let mut message = bytes(if is_map { MAPS } else { ARRAYS });
        let at = at.index(message.len());
        message[at] = byte;
        fuzz_vllm_message(&message);
    }
}
