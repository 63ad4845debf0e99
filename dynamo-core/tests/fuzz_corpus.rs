//! What fuzzing found worth keeping, replayed; `fuzz/` has the targets.
#![expect(clippy::unwrap_used, reason = "helpers of tests fail the test")]

#[path = "support/corpus.rs"]
mod corpus;

use dynamo_core::wire::fuzz::{TARGETS, Target};

use corpus::{inputs, mutate};

#[test]
fn no_input_of_the_corpus_breaks_a_decoder_or_a_session() {
    for (name, target) in targets() {
        inputs(name).iter().for_each(|input| target(input));
    }
}

/// A little of what the targets do for hours: each input with pieces cut out, doubled and changed.
#[test]
fn no_mutation_of_the_corpus_breaks_a_decoder_or_a_session() {
    mutate_all(2_000);
}

#[test]
#[ignore = "minutes; the targets of fuzz/ do it better where cargo-fuzz is"]
fn no_million_of_mutations_break_a_decoder_or_a_session() {
    mutate_all(100_000);
}

fn mutate_all(rounds: usize) {
    for (name, target) in targets() {
        mutate(&inputs(name), rounds, target);
    }
}

fn targets() -> Vec<Target> {
    let beyond_the_wire: &[Target] = &[
        #[cfg(feature = "nats")]
        ("event", dynamo_core::event_plane::fuzz_event),
        #[cfg(feature = "etcd")]
        ("etcd_key", dynamo_core::discovery::fuzz_etcd_key),
        #[cfg(feature = "openai")]
        ("sse", dynamo_core::openai::fuzz_sse),
        #[cfg(feature = "openai")]
        ("completion", dynamo_core::openai::fuzz_completion),
        #[cfg(feature = "openai")]
        ("metrics", dynamo_core::openai::fuzz_metrics),
        #[cfg(feature = "tls")]
        ("certificate", dynamo_core::request_plane::fuzz_certificate),
    ];
    [&TARGETS, beyond_the_wire].concat()
}
