use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

use super::Pick;
use crate::discovery::Instance;
use crate::error::{Error, Result};
use crate::protocol::InstanceId;

/// The streams that a picker has sent to each instance and that still run.
#[derive(Debug, Default, Clone)]
pub(super) struct Counts(Arc<Mutex<State>>);

#[derive(Debug, Default)]
struct State {
    loads: HashMap<InstanceId, Load>,
    picks: u64,
}

/// How busy an instance is; the smaller one is to be preferred.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Load {
    streams: usize,
    /// Among equals the one picked longest ago, so that idle instances share the work.
    last_pick: u64,
}

impl Counts {
    pub(super) fn streams(&self, instance: InstanceId) -> usize {
        let state = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        state.loads.get(&instance).map_or(0, |load| load.streams)
    }

    /// Counts a stream on the instance that `choose` chooses by the loads of the candidates.
    pub(super) fn pick(
        &self,
        candidates: &[Instance],
        choose: impl FnOnce(&dyn Fn(InstanceId) -> Load) -> Option<InstanceId>,
    ) -> Result<Pick> {
        let mut state = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        // Instances that left and have no stream any more are forgotten.
        if state.loads.len() > candidates.len() {
            let listed = |id: &InstanceId| candidates.binary_search_by_key(id, |c| c.id).is_ok();
            state.loads.retain(|id, load| load.streams > 0 || listed(id));
        }
        let chosen = choose(&|id| state.loads.get(&id).copied().unwrap_or_default());
        let chosen = chosen.ok_or_else(|| Error::invalid("a pick among no candidates"))?;
        state.picks += 1;
        let last_pick = state.picks;
        let load = state.loads.entry(chosen).or_default();
        (load.streams, load.last_pick) = (load.streams + 1, last_pick);
        Ok(Pick::new(chosen).with_guard(Stream { counts: self.clone(), instance: chosen }))
    }
}

struct Stream {
    counts: Counts,
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
