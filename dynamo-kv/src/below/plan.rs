//! What is worth loading; pure.

use std::time::Duration;

use crate::evict::BlockCost;

/// Returns how many of the first of `count` blocks, which stand behind `depth` others, are loaded: as
/// many as save the most time, and come within `left`.
///
/// `load` says how long a load of so many takes, `otherwise` what one costs that is not loaded, but
/// computed, say; without the latter all are worth it.
pub(super) fn worth_loading(
    count: usize,
    depth: u32,
    left: Duration,
    otherwise: Option<&BlockCost>,
    load: impl Fn(usize) -> Duration,
) -> usize {
    let (mut spared, mut most, mut best) = (0.0, 0.0, 0);
    for blocks in 1..=count {
        let depth = depth.saturating_add(u32::try_from(blocks - 1).unwrap_or(u32::MAX));
        let loading = load(blocks);
        if loading > left {
            break;
        }
        let Some(otherwise) = otherwise else {
            best = blocks;
            continue;
        };
        spared += otherwise.seconds(depth);
        let saved = spared - loading.as_secs_f64();
        if saved > most {
            (most, best) = (saved, blocks);
        }
    }
    best
}

#[cfg(test)]
mod tests {
    use super::*;

    const LEFT: Duration = Duration::from_secs(60);

    fn load(blocks: usize) -> Duration {
        // A tier that takes long to begin.
        Duration::from_millis(100 + 10 * blocks as u64)
    }

    #[test]
    fn what_is_cheaper_to_compute_is_computed() {
        let plan = |count, depth, compute_ms, per_depth_ms| {
            let cost = BlockCost::new(compute_ms / 1e3, per_depth_ms / 1e3);
            worth_loading(count, depth, LEFT, Some(&cost), load)
        };
        assert_eq!(plan(50, 0, 9.0, 0.0), 0, "each is");
        assert_eq!(plan(50, 0, 20.0, 0.0), 50, "of many, the beginning pays");
        assert_eq!(plan(9, 0, 20.0, 0.0), 0, "of few, it does not");
        assert_eq!(plan(12, 0, 9.0, 1.0), 0);
        assert_eq!(plan(12, 100, 9.0, 1.0), 12, "what attends to much is dear to compute");
        assert_eq!(plan(30, 0, 50.0, -2.0), 20, "as far as each saves something");
        assert_eq!(plan(0, 0, 50.0, 0.0), 0);
    }

    #[test]
    fn what_does_not_come_in_time_is_computed() {
        let plan = |left_ms| worth_loading(50, 0, Duration::from_millis(left_ms), None, load);
        assert_eq!((plan(60_000), plan(200), plan(109)), (50, 10, 0));
    }
}
