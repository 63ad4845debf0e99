//! What tests and benches of routing share.

pub mod replay;
