//! What threads share: of the standard library, or of `loom`, which tries their orders.

#[cfg(dynamo_loom)]
pub(super) use loom::sync::atomic::{AtomicU32, AtomicUsize, Ordering, fence};
#[cfg(not(dynamo_loom))]
pub(super) use std::sync::atomic::{AtomicU32, AtomicUsize, Ordering, fence};
