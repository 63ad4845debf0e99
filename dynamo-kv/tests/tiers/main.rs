//! A manager with tiers below it: what goes down comes up as it was, or not at all.
#![cfg(unix)]
#![expect(clippy::unwrap_used, reason = "helpers of tests fail the test")]

mod device;
mod down;
mod events;
mod groups;
mod oracle;
mod pulled;
mod quota;
mod support;
mod up;
