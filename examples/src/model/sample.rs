use std::cmp::Ordering;
use std::collections::BinaryHeap;

/// Chooses a token from `logits`.
///
/// Temperature 0 takes the largest logit, the first among equals. Otherwise it samples from the
/// softmax of `logits / temperature`, cut to the smallest set of tokens that holds `top_p` of the
/// probability (nucleus sampling, arXiv:1904.09751). The random number depends on `seed` and
/// `position` alone, so a sequence goes on unchanged on another worker.
///
/// # Panics
/// If there are no logits.
pub fn sample(logits: &[f32], temperature: f32, top_p: f32, seed: u64, position: u64) -> u32 {
    if temperature <= 0.0 {
        return index(largest(logits));
    }
    let max = logits[largest(logits)];
    let weigh = |(token, logit): (usize, &f32)| Candidate {
        weight: f64::from((logit - max) / temperature).exp(),
        token,
    };
    let mut candidates: Vec<_> = logits.iter().enumerate().map(weigh).collect();
    let mut kept: f64 = candidates.iter().map(|candidate| candidate.weight).sum();
    if top_p < 1.0 {
        // A heap, because a few of very many tokens hold most of the probability.
        let enough = kept * f64::from(top_p);
        let mut heap = BinaryHeap::from(candidates);
        (candidates, kept) = (Vec::new(), 0.0);
        while let Some(candidate) = heap.pop() {
            kept += candidate.weight;
            candidates.push(candidate);
            if kept >= enough {
                break;
            }
        }
    }
    let mut left = uniform(seed, position) * kept;
    let chosen = candidates.iter().find(|candidate| {
        left -= candidate.weight;
        left < 0.0
    });
    // Rounding may leave a little behind the last one.
    let likely = || candidates.iter().rfind(|candidate| candidate.weight > 0.0);
    index(chosen.or_else(likely).map_or_else(|| largest(logits), |candidate| candidate.token))
}

/// A token and its share; a larger one has the larger share, or is the earlier of equals.
struct Candidate {
    weight: f64,
    token: usize,
}

impl Ord for Candidate {
    fn cmp(&self, other: &Self) -> Ordering {
        self.weight.total_cmp(&other.weight).then(other.token.cmp(&self.token))
    }
}

impl PartialOrd for Candidate {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl PartialEq for Candidate {
    fn eq(&self, other: &Self) -> bool {
        self.cmp(other).is_eq()
    }
}

impl Eq for Candidate {}

fn largest(logits: &[f32]) -> usize {
    let mut best = 0;
    for (token, logit) in logits.iter().enumerate() {
        if *logit > logits[best] {
            best = token;
        }
    }
    best
}

fn index(token: usize) -> u32 {
    u32::try_from(token).expect("a vocabulary has less than 2^32 tokens")
}

/// A number in [0, 1): SplitMix64 (Steele, Lea, Flood 2014) of seed and position.
fn uniform(seed: u64, position: u64) -> f64 {
    let mut z = seed ^ position.wrapping_add(1).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^= z >> 31;
    (z >> 11) as f64 / (1u64 << 53) as f64
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn greedy_takes_the_first_of_the_largest() {
        assert_eq!(sample(&[1.0, 3.0, 3.0, 2.0], 0.0, 1.0, 7, 0), 1);
    }

    #[test]
    fn sampling_follows_the_distribution_and_repeats_with_the_seed() {
        let logits = [2.0f32.ln(), 0.0, f32::NEG_INFINITY];
        let draw = |seed| (0..3000).map(move |at| sample(&logits, 1.0, 1.0, seed, at));
        let firsts = draw(1).filter(|token| *token == 0).count();
        assert!((1850..2150).contains(&firsts), "two thirds of 3000: {firsts}");
        assert!(draw(1).all(|token| token != 2));
        assert!(draw(1).eq(draw(1)));
        assert!(!draw(1).eq(draw(2)));
        assert!((0..100).all(|at| sample(&logits, 1.0, 0.5, 1, at) == 0));
    }
}
