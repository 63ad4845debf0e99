//! Peers in processes of their own that are killed, frozen, cut off and started anew, over each
//! backend; UCX is skipped, and that is said, without libucp.
#![cfg(target_os = "linux")]
#![expect(clippy::unwrap_used, reason = "helpers of tests fail the test")]
#![expect(clippy::disallowed_methods, reason = "a test looks at its own clock and environment")]

mod agents;
#[path = "../child/mod.rs"]
mod child;
#[path = "../support/eventually.rs"]
mod eventually;
mod frozen;
mod held;
mod killed;
mod link;
mod peer;
mod process;
#[path = "../support/reached.rs"]
mod reached;
mod restarted;
