//! The tier of a peer: between processes as far as requests and bytes are concerned, and between real ones
//! that are killed.
#![expect(clippy::unwrap_used, reason = "helpers of tests fail the test")]

mod basics;
mod contract;
mod events;
#[cfg(unix)]
mod killed;
mod oracle;
#[cfg(unix)]
#[path = "../support/other.rs"]
mod other;
mod support;
