//! What fuzzing found worth keeping, replayed; `fuzz/` has the targets.
#![expect(clippy::unwrap_used, reason = "helpers of tests fail the test")]

#[path = "../../dynamo-core/tests/support/corpus.rs"]
mod corpus;

use dynamo_transfer::fuzz::TARGETS;

use corpus::{inputs, mutate};

#[test]
fn no_input_of_the_corpus_breaks_a_decoder_nor_does_a_flipped_bit_of_it() {
    for (name, target) in TARGETS {
        for mut bytes in inputs(name) {
            target(&bytes);
            for at in 0..bytes.len() * 8 {
                bytes[at / 8] ^= 1 << (at % 8);
                target(&bytes);
                target(&bytes[..at / 8]);
                bytes[at / 8] ^= 1 << (at % 8);
            }
        }
    }
}

/// A little of what the targets do for hours: each input with pieces cut out, doubled and changed.
#[test]
fn no_mutation_of_the_corpus_breaks_a_decoder() {
    mutate_all(100_000);
}

#[test]
#[ignore = "a minute; the targets of fuzz/ do it better where cargo-fuzz is"]
fn no_million_of_mutations_break_a_decoder() {
    mutate_all(1_000_000);
}

fn mutate_all(rounds: usize) {
    for (name, target) in TARGETS {
        mutate(&inputs(name), rounds, target);
    }
}
