use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

use super::{Pick, Picker};
use crate::discovery::Instance;
use crate::engine::Context;
use crate::error::{Error, Result};
use crate::protocol::InstanceId;

/// Picks the instance with the fewest streams that this picker has sent there and that still run.
///
/// Among equals it takes the one picked longest ago, so that idle instances share the work.
#[derive(Debug, Default, Clone)]
pub struct LeastLoaded(Arc<Mutex<State>>);

#[derive(Debug, Default)]
struct State {
    loads: HashMap<InstanceId, Load>,
    picks: u64,
}

#[derive(Debug, Default, Clone, Copy)]
struct Load {
    streams: usize,
    last_pick: u64,
}

impl LeastLoaded {
    /// Returns how many streams are running on `instance`.
    pub fn streams(&self, instance: InstanceId) -> usize {
        let state = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        state.loads.get(&instance).map_or(0, |load| load.streams)
    }
}

impl<Req> Picker<Req> for LeastLoaded {
    fn pick(&self, _: &Context, _: &Req, candidates: &[Instance]) -> Result<Pick> {
        let mut state = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        // Instances that left and have no stream any more are forgotten.
        state.loads.retain(|id, load| load.streams > 0 || candidates.iter().any(|c| c.id == *id));
        let chosen = candidates
            .iter()
            .map(|candidate| candidate.id)
            .min_by_key(|id| {
                let load = state.loads.get(id).copied().unwrap_or_default();
                (load.streams, load.last_pick)
            })
            .ok_or_else(|| Error::invalid("least loaded over no candidates"))?;
        state.picks += 1;
        let last_pick = state.picks;
        let load = state.loads.entry(chosen).or_default();
        load.streams += 1;
        load.last_pick = last_pick;
        Ok(Pick::new(chosen).with_guard(Stream { counts: self.clone(), instance: chosen }))
    }
}

struct Stream {
    counts: LeastLoaded,
    instance: InstanceId,
}

impl Drop for Stream {
    fn drop(&mut self) {
        let mut state = self.counts.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(load) = state.loads.get_mut(&self.instance) {
            load.streams -= 1;
        }
    }
}
