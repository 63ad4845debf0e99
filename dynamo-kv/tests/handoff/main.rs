//! Hand-offs between processes of which one is killed.
#![cfg(unix)]
#![expect(clippy::unwrap_used, reason = "helpers of tests fail the test")]

mod decode;
mod prefill;
mod support;
