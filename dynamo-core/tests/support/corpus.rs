//! What fuzzing found worth keeping, and a little of what it does for hours.

use std::fs;
use std::path::Path;

/// Returns the inputs that are kept for a target, in the order of their names.
pub(crate) fn inputs(target: &str) -> Vec<Vec<u8>> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap().join("fuzz/corpus");
    let inputs = fs::read_dir(folder.join(target)).unwrap();
    let mut paths: Vec<_> = inputs.map(|input| input.unwrap().path()).collect();
    assert!(!paths.is_empty(), "{target} has a corpus");
    paths.sort();
    paths.iter().map(|path| fs::read(path).unwrap()).collect()
}

/// Feeds `target` so many times one of `inputs` with pieces cut out, doubled and changed.
pub(crate) fn mutate(inputs: &[Vec<u8>], rounds: usize, target: impl Fn(&[u8])) {
    let mut chance = 0x9e37_79b9_7f4a_7c15_u64;
    let mut below = |bound: usize| {
        chance ^= chance << 13;
        chance ^= chance >> 7;
        chance ^= chance << 17;
        usize::try_from(chance >> 33).unwrap() % bound.max(1)
    };
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
