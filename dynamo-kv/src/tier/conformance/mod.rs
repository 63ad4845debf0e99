//! The suite that every [`Tier`] passes.
//!
//! ```
//! # #[cfg(unix)]
//! # #[tokio::main(flavor = "current_thread")]
//! # async fn main() {
//! use dynamo_kv::tier::conformance;
//! use dynamo_kv::tier::disk::{DiskConfig, DiskTier};
//!
//! # let dir = std::env::temp_dir().join(format!("dynamo-kv-conforms-{}", std::process::id()));
//! let lives = std::cell::Cell::new(0);
//! let block_bytes = conformance::layout().block_bytes();
//! conformance::run(async || {
//!     lives.set(lives.get() + 1);
//!     let dir = dir.join(lives.get().to_string());
//!     let config = DiskConfig::new(dir, conformance::BLOCKS, block_bytes, 7);
//!     DiskTier::open(config).await.expect("opens")
//! })
//! .await;
//! # std::fs::remove_dir_all(dir).ok();
//! # }
//! # #[cfg(not(unix))]
//! # fn main() {}
//! ```

mod kept;
mod removed;
mod stage;

use std::sync::Arc;

use dynamo_core::protocol::BlockSize;

use super::Tier;
use crate::layout::{BlockLayout, DType};
use stage::Stage;

/// How many blocks a tier has room for that is checked.
pub const BLOCKS: u32 = 256;

/// Returns the layout of the blocks that a tier keeps that is checked: 4 KiB each.
///
/// # Panics
/// Never: there is such a layout.
pub fn layout() -> BlockLayout {
    let size = BlockSize::new(8).expect("more than none");
    BlockLayout::new(2, 1, 32, size, DType::F32).expect("a layout")
}

/// Runs the whole suite, each part on a tier of its own from `make`, which is empty, keeps blocks of
/// [`layout`] and has room for [`BLOCKS`] of them.
///
/// # Panics
/// If the contract is broken.
pub async fn run<T: Tier>(make: impl AsyncFn() -> T) {
    run_without_removal(&make).await;
    let stage = async || Stage::new(Arc::new(make().await));
    removed::what_is_there_is_told_and_listed_parents_first(stage().await).await;
    removed::what_is_removed_is_gone_and_the_rest_is_not(stage().await).await;
    removed::what_is_cleared_is_gone_and_can_be_stored_again(stage().await).await;
    removed::what_is_stored_while_all_is_cleared_is_there_if_it_is_said_to_be(stage().await).await;
    removed::what_is_loaded_while_all_is_cleared_is_there_if_it_is_said_to_be(stage().await).await;
    removed::what_is_stored_while_it_is_removed_is_there_if_it_is_said_to_be(stage().await).await;
    removed::nothing_is_removed_after_a_shutdown(stage().await).await;
}

/// Runs the part of the suite that holds for a tier of somebody else's blocks too: one that neither
/// removes them nor tells what changes.
///
/// # Panics
/// If the contract is broken.
pub async fn run_without_removal<T: Tier>(make: impl AsyncFn() -> T) {
    let stage = async || Stage::new(Arc::new(make().await));
    kept::what_was_stored_is_loaded_byte_for_byte(stage().await).await;
    kept::what_is_there_is_not_stored_again(stage().await).await;
    kept::of_two_who_store_a_block_at_once_both_have_it_stored(stage().await).await;
    kept::memory_of_another_size_is_refused(stage().await).await;
    kept::what_is_given_up_is_whole_or_not_there_and_holds_no_memory(stage().await).await;
    kept::after_a_shutdown_all_is_refused_at_once(stage().await).await;
}
