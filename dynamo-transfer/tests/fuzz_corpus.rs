//! What fuzzing found worth keeping, replayed; `fuzz/` has the targets.

use std::fs;
use std::path::Path;

use dynamo_transfer::fuzz::TARGETS;

#[test]
fn no_input_of_the_corpus_breaks_a_decoder_nor_does_a_flipped_bit_of_it() {
    let corpus = Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap().join("fuzz/corpus");
    for (name, target) in TARGETS {
        let mut count = 0;
        for input in fs::read_dir(corpus.join(name)).unwrap() {
            let mut bytes = fs::read(input.unwrap().path()).unwrap();
            target(&bytes);
            for at in 0..bytes.len() * 8 {
                bytes[at / 8] ^= 1 << (at % 8);
                target(&bytes);
                target(&bytes[..at / 8]);
                bytes[at / 8] ^= 1 << (at % 8);
            }
            count += 1;
        }
        assert!(count > 0, "{name} has a corpus");
    }
}
