//! What a block costs to compute on this machine, so that nothing is loaded that is computed sooner.

use std::time::Duration;

use dynamo_core::protocol::BlockSize;
use dynamo_core::time::{Clock, SystemClock};
use dynamo_kv::evict::BlockCost;

use crate::model::{Model, Result, VecKv};

/// Measures how long a block of `model` takes to compute, at the front of a sequence and behind others.
///
/// Computes six blocks.
pub fn measure(model: &Model, block_size: BlockSize) -> Result<BlockCost> {
    let tokens = block_size.tokens().min(model.config().context);
    let behind = (model.config().context / tokens - 1).min(BEHIND_MAX);
    let (block, mut kv) =
        (vec![0; tokens], VecKv::new(model.config(), tokens, (behind + 1) * tokens));
    let mut fastest = |depth: usize| -> Result<f64> {
        let mut fastest = Duration::MAX;
        for _ in 0..TIMES {
            let began = SystemClock.now();
            model.forward(&block, depth * tokens, &mut kv)?;
            fastest = fastest.min(SystemClock.now() - began);
        }
        Ok(fastest.as_secs_f64())
    };
    let (first, last) = (fastest(0)?, fastest(behind)?);
    Ok(BlockCost::new(first, (last - first).max(0.0) / behind.max(1) as f64))
}

/// Enough blocks to attend to, and few to make room for.
const BEHIND_MAX: usize = 15;

/// The first time warms caches up, the others tell.
const TIMES: usize = 3;

#[cfg(test)]
#[path = "../../tests/support/tiny.rs"]
mod tiny;

#[cfg(test)]
mod tests {
    use super::tiny::{Size, file};
    use super::*;
    use crate::model::Loaded;

    #[test]
    fn a_block_costs_time_and_no_less_behind_others() {
        let size = Size { layers: 1, dim: 32, ffn: 32, context: 64 };
        let Loaded { model, .. } = Loaded::from_bytes(&file(size).0, &mut |_, _| {}).unwrap();
        for block_size in [1, 16, 64, 128] {
            let cost = measure(&model, BlockSize::new(block_size).unwrap()).unwrap();
            assert!(cost.seconds(0) > 0.0 && cost.seconds(9) >= cost.seconds(0), "{cost:?}");
        }
    }
}
