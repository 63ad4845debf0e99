//! What nobody can guess: ids that are rights, and keys.

use dynamo_core::{Error, Result};

/// Returns bytes that nobody can guess.
pub(crate) fn random<const LEN: usize>() -> Result<[u8; LEN]> {
    let mut bytes = [0; LEN];
    getrandom::fill(&mut bytes).map_err(|error| {
        Error::internal("the system gives no random numbers").with_source(error)
    })?;
    Ok(bytes)
}
