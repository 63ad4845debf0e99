//! Servers that tests run against, played in this process.

pub mod openai;
