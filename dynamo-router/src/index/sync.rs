//! What the writer and its readers share: of the standard library and of `arc-swap`, or of `loom`, which
//! tries their orders.

#[cfg(not(dynamo_loom))]
pub(super) use std::{
    hint::spin_loop,
    sync::atomic::{AtomicU32, AtomicU64, Ordering, fence},
};

#[cfg(not(dynamo_loom))]
pub(super) use arc_swap::ArcSwap as Shared;
#[cfg(dynamo_loom)]
pub(super) use loom::{
    hint::spin_loop,
    sync::atomic::{AtomicU32, AtomicU64, Ordering, fence},
};

/// A value that is replaced while others look at it.
#[cfg(dynamo_loom)]
#[derive(Debug)]
pub(super) struct Shared<T>(loom::sync::Mutex<std::sync::Arc<T>>);

#[cfg(dynamo_loom)]
impl<T> Shared<T> {
    pub(super) fn new(value: std::sync::Arc<T>) -> Self {
        Self(loom::sync::Mutex::new(value))
    }

    pub(super) fn load(&self) -> std::sync::Arc<T> {
        std::sync::Arc::clone(&self.0.lock().expect("nobody panics with it"))
    }

    pub(super) fn store(&self, value: std::sync::Arc<T>) {
        // What was there is dropped when nothing is locked any more.
        let old = std::mem::replace(&mut *self.0.lock().expect("nobody panics with it"), value);
        drop(old);
    }
}
