use super::counts::Counts;
use super::{Pick, Picker};
use crate::discovery::Instance;
use crate::engine::Context;
use crate::error::Result;
use crate::protocol::InstanceId;

/// Picks the instance with the fewest streams that this picker has sent there and that still run.
///
/// Among equals it takes the one picked longest ago, so that idle instances share the work.
#[derive(Debug, Default, Clone)]
pub struct LeastLoaded(Counts);

impl LeastLoaded {
    /// Returns how many streams are running on `instance`.
    pub fn streams(&self, instance: InstanceId) -> usize {
        self.0.streams(instance)
    }
}

impl<Req> Picker<Req> for LeastLoaded {
    fn pick(&self, _: &Context, _: &Req, candidates: &[Instance]) -> Result<Pick> {
        self.0.pick(candidates, |load| {
            candidates.iter().map(|candidate| candidate.id).min_by_key(|id| load(*id))
        })
    }
}
