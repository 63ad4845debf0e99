//! vLLM's KV events over ZeroMQ (feature `vllm`): a fleet of real engines is routed by them.
//!
//! [`VllmEvents`] follows one publisher: it connects, or is connected to, and tells a
//! [`KvRouter`](crate::KvRouter) or any other [`Sink`]. What is lost on the way is asked for again at
//! the publisher's replay socket; what nobody has any more is forgotten, so the index says less than
//! is true, never more. A worker that the router has forgotten and that is back is told of anew.
//!
//! [`EventBridge`] does the same beside the engine, for all routers: it publishes the events on the
//! event plane, and [`BridgeSnapshots`] tells those that start later or lose some what there is.
//!
//! Below it all is pure: [`Batch::decode`] reads a message, [`Translator`] turns engine blocks into
//! the router's. Who carries messages by other means uses these two alone. What is on the wire, and
//! how it is read, is in `docs/vllm-events.md`.

mod batch;
mod bridge;
mod cache;
mod changes;
mod config;
mod entry;
mod extra;
mod feed;
mod fields;
mod held;
mod intake;
mod order;
mod pack;
mod problem;
mod sink;
mod snapshots;
mod source;
mod translator;
mod zmtp;

pub use batch::{Batch, EngineHash, Event, Group, Removed, Stored};
pub use bridge::EventBridge;
pub use config::VllmConfig;
pub use feed::VllmEvents;
pub use pack::Malformed;
pub use problem::{Problem, VllmStats};
pub use sink::Sink;
pub use snapshots::BridgeSnapshots;
pub use translator::Translator;

/// Decodes whatever arrives, as payload and as bytes of a connection, and translates it.
///
/// # Panics
/// If that breaks what has to hold for any bytes.
#[cfg(any(test, feature = "test-util"))]
pub fn fuzz_vllm_message(data: &[u8]) {
    use dynamo_core::protocol::{BlockSize, CacheNamespace, InstanceId};

    zmtp::fuzz(data);
    let Ok(batch) = Batch::decode(data) else { return };
    let config =
        VllmConfig::new(InstanceId(1), "tcp://*:1", CacheNamespace::default(), BlockSize::DEFAULT);
    let mut translator = Translator::new(config.with_blocks_max(1000));
    let mut next = 0;
    for _ in 0..2 {
        translator.apply(&batch, &mut |event| {
            assert_eq!(event.seq, next, "events are numbered without a hole");
            next += 1;
        });
    }
}

#[cfg(test)]
mod tests;
