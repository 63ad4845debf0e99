//! What fuzzing found worth keeping, replayed; `fuzz/` has the targets.
#![expect(clippy::unwrap_used, reason = "helpers of tests fail the test")]

use std::fs;
use std::path::Path;

use dynamo_core::wire::fuzz::{TARGETS, Target};

#[test]
fn no_input_of_the_corpus_breaks_a_decoder_or_a_session() {
    let corpus = Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap().join("fuzz/corpus");
    for (name, target) in targets() {
        let inputs = fs::read_dir(corpus.join(name)).unwrap();
        let mut count = 0;
        for input in inputs {
            target(&fs::read(input.unwrap().path()).unwrap());
            count += 1;
        }
        assert!(count > 0, "{name} has a corpus");
    }
}

/// A little of what the targets do for hours: each input with pieces cut out, doubled and changed.
#[test]
fn no_mutation_of_the_corpus_breaks_a_decoder_or_a_session() {
    mutate(2_000);
}

#[test]
#[ignore = "minutes; the targets of fuzz/ do it better where cargo-fuzz is"]
fn no_million_of_mutations_break_a_decoder_or_a_session() {
    mutate(100_000);
}

fn mutate(rounds: usize) {
    let corpus = Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap().join("fuzz/corpus");
    let mut chance = 0x9e37_79b9_7f4a_7c15_u64;
    let mut below = |bound: usize| {
        chance ^= chance << 13;
        chance ^= chance >> 7;
        chance ^= chance << 17;
        usize::try_from(chance >> 33).unwrap() % bound.max(1)
    };
    for (name, target) in targets() {
        let mut paths: Vec<_> =
            fs::read_dir(corpus.join(name)).unwrap().map(|entry| entry.unwrap().path()).collect();
        paths.sort();
        let inputs: Vec<_> = paths.iter().map(|path| fs::read(path).unwrap()).collect();
        for _ in 0..rounds {
            let mut input = inputs[below(inputs.len())].clone();
            for _ in 0..=below(4) {
                let (at, len) = (below(input.len()), below(16));
                let piece = at..input.len().min(at + len);
                match below(4) {
                    0 => drop(input.drain(piece)),
                    1 => input.extend_from_within(piece),
                    2 if at < input.len() => input[at] = u8::try_from(below(256)).unwrap(),
                    _ if at < input.len() => input[at] ^= 1 << below(8),
                    _ => input.push(0),
                }
            }
            target(&input);
        }
    }
}

fn targets() -> Vec<Target> {
    let beyond_the_wire: &[Target] = &[
        #[cfg(feature = "nats")]
        ("event", dynamo_core::event_plane::fuzz_event),
        #[cfg(feature = "etcd")]
        ("etcd_key", dynamo_core::discovery::fuzz_etcd_key),
        #[cfg(feature = "tls")]
        ("certificate", dynamo_core::request_plane::fuzz_certificate),
    ];
    [&TARGETS, beyond_the_wire].concat()
}
