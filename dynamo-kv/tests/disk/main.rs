//! The disk tier: what it promises, under faults, and under kills of its process.
#![cfg(unix)]
#![expect(clippy::unwrap_used, reason = "helpers of tests fail the test")]

mod basics;
mod contract;
mod damage;
mod directory;
mod killed;
mod oracle;
#[path = "../support/other.rs"]
mod other;
mod support;
