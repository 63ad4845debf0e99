use std::sync::{Mutex, PoisonError};

use super::{Pick, Picker};
use crate::discovery::Instance;
use crate::engine::Context;
use crate::error::{Error, Result};
use crate::random::Random;

/// Picks an instance at random: needs no state that clients would have to share.
#[derive(Debug)]
pub struct RandomPicker(Mutex<Random>);

impl RandomPicker {
    /// Draws by `seed`.
    pub fn new(seed: u64) -> Self {
        Self(Mutex::new(Random::new(seed)))
    }
}

impl<Req> Picker<Req> for RandomPicker {
    fn pick(&self, _: &Context, _: &Req, candidates: &[Instance]) -> Result<Pick> {
        let mut random = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let drawn = random.below(candidates.len());
        let drawn = drawn.ok_or_else(|| Error::invalid("a pick among no candidates"))?;
        Ok(Pick::new(candidates[drawn].id))
    }
}
