//! One-sided operations served by the owner over TCP.
//!
//! ```text
//! client                                  owner
//! HELLO  who I am, whom I mean   ──────►  checks name and incarnation
//! READ   region, key, ranges     ──────►  checks key, rights, bounds
//!                                ◄──────  STATUS, then the bytes, range after range
//! WRITE  region, key, ranges     ──────►  checks
//!                                ◄──────  STATUS: go ahead
//! the bytes                      ──────►
//!                                ◄──────  STATUS: written
//! NOTIFY payload                 ──────►  queues it
//!                                ◄──────  STATUS
//! ```
//!
//! One operation at a time runs on a connection; a connection that breaks off in the middle is
//! never used again. Bytes go from socket to memory and from memory to socket without a copy
//! between.

mod client;
mod frame;
mod server;
mod stream;

pub(crate) use client::TcpClient;
pub(crate) use server::TcpServer;
