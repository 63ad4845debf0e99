//! ZMTP 3.1, the protocol between ZeroMQ's sockets, as far as a subscriber and whoever asks for a
//! replay need it: no security, 3.0 with peers that know no more (<https://rfc.zeromq.org/spec/37>).
//!
//! It is here, rather than a crate, so that a peer's lengths are checked before anything is
//! allocated, each connection is told from the others, and all ends with the task that owns it.

mod connection;
mod frame;

pub(super) use connection::{Connection, Limits, Peer, Role};
#[cfg(any(test, feature = "test-util"))]
pub(super) use frame::fuzz;

#[cfg(test)]
mod tests;
