//! The bytes between a client and a server, and the rules they follow; no IO, no clock.
//!
//! | room | what happens there |
//! |---|---|
//! | [`frame`] | header and payload of a frame ↔ bytes |
//! | [`head`] | what opens a request: endpoint, id, deadline, priority, metadata |
//! | [`session`] | many streams over one connection: order, credit, liveness, ends |
//! | [`link`] | a byte stream over datagrams that may be lost, repeated or late |
//! | [`codec`] | messages ↔ bytes |
//!
//! The TCP plane, the NATS plane over a [`link::Link`], and the tests drive the same
//! [`session::Session`]. `docs/wire-format.md` says what
//! the bytes mean.

pub mod codec;
pub mod frame;
#[cfg(any(test, feature = "test-util"))]
pub mod fuzz;
pub mod head;
pub mod link;
pub mod session;
