//! What has to hold for any bytes: one function per decoder, called by the fuzz targets and by the
//! tests that replay what is kept of them.

pub use crate::handoff::fuzz::{fuzz_message, fuzz_ticket};

/// What is fed, by name.
pub type Target = (&'static str, fn(&[u8]));

/// The targets of this crate.
pub const TARGETS: &[Target] =
    &[("handoff_ticket", fuzz_ticket), ("handoff_message", fuzz_message)];

#[cfg(test)]
#[path = "../../dynamo-core/tests/support/corpus.rs"]
pub(crate) mod corpus;

#[cfg(test)]
mod tests {
    use super::TARGETS;
    use super::corpus::{inputs, mutate};

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
        for (name, target) in TARGETS {
            mutate(&inputs(name), 50_000, target);
        }
    }
}
