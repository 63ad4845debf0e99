//! Servers that tests run against, played in this process.

#[cfg(feature = "openai")]
pub mod openai;
