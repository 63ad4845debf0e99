//! Tests that cross the crates, and the README's example.
#![doc = include_str!("../../README.md")]

pub mod phases;
pub mod process;
pub mod tokens;
