//! Regions of every kind: host and pinned memory, memory of a device, and files.
#![cfg(unix)]
#![expect(clippy::unwrap_used, reason = "helpers of tests fail the test")]

mod conforms;
#[path = "../support/eventually.rs"]
mod eventually;
mod faults;
mod lab;
mod pairs;
