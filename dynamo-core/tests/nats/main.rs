//! Planes over a real NATS, and what becomes of streams and events when it is killed or freezes.
#![cfg(feature = "nats")]
#![expect(clippy::unwrap_used, reason = "helpers of tests fail the test")]

mod access;
mod events;
mod requests;
mod server;
