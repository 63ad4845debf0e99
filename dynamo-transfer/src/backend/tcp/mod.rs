//! One-sided operations served by the owner over TCP.
//!
//! ```text
//! client                                  owner
//! HELLO  who I am, whom I mean            ──────►  checks name and incarnation
//!                                         ◄──────  STATUS
//! READ   region, token, ranges            ──────►  checks token, rights, bounds
//!                                         ◄──────  STATUS, the bytes, range after range
//! WRITE  region, token, ranges, the bytes ──────►  checks, takes or discards them
//!                                         ◄──────  STATUS, which says whether any were written
//! NOTIFY payload                          ──────►  queues it
//!                                         ◄──────  STATUS
//! ```
//!
//! A transfer is cut into stripes, and each of a few lanes to the peer, a connection each, takes the
//! next stripe of what is most urgent: so a large transfer fills all lanes, and a small one is never
//! behind more than a few stripes. Answers come in the order of requests, and the next stripe is
//! asked for before the one ahead has arrived. Bytes go from socket to memory and from memory to
//! socket without a copy between; a checksum comes behind them if the request asks for one.

mod client;
mod frame;
mod job;
mod lanes;
mod pipeline;
mod queue;
mod server;
mod stream;

#[cfg(test)]
mod tests;

pub(crate) use client::TcpClient;
pub(crate) use server::TcpServer;

#[cfg(any(test, feature = "test-util"))]
pub(crate) use frame::{fuzz_request, fuzz_status};
