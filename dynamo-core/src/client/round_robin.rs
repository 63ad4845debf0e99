use std::sync::atomic::{AtomicUsize, Ordering};

use super::{Pick, Picker};
use crate::discovery::Instance;
use crate::engine::Context;
use crate::error::{Error, Result};

/// Picks instances in turn.
#[derive(Debug, Default)]
pub struct RoundRobin(AtomicUsize);

impl<Req> Picker<Req> for RoundRobin {
    fn pick(&self, _: &Context, _: &Req, candidates: &[Instance]) -> Result<Pick> {
        let turn = self.0.fetch_add(1, Ordering::Relaxed);
        let chosen = candidates.get(turn % candidates.len().max(1));
        let chosen = chosen.ok_or_else(|| Error::invalid("round robin over no candidates"))?;
        Ok(Pick::new(chosen.id))
    }
}
