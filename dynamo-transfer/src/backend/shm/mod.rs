//! Between processes of one host: the initiator copies, once, and the owner takes no part.
//!
//! ```text
//! initiator                                   owner
//!   │ Hello ──────────────────────────────────► │  socket without a file
//!   │ ◄──────── Welcome: proof, page of slots   │
//!   │ Open{region, token, right} ─────────────► │  checks, takes a lease
//!   │ ◄── slot, and files or addresses          │
//!   │ enter the slot, copy a stripe, leave …    │  (no message)
//!   │                                           │  region closed: revokes the slot
//!   │ leave or enter sees that: Close{slot} ──► │  gives the lease up
//! ```
//!
//! Memory of [`HostBuffer::shared`](crate::HostBuffer::shared) is mapped; other memory is reached by
//! `process_vm_readv` and `process_vm_writev`, where the kernel lets this process, once the owner's
//! has shown that it is the one at the other end of the socket. A peer that cannot be reached in
//! either way is `BackendUnavailable` or `Unreachable` before any byte moves, and goes another way.
//!
//! What a copy in progress touches stays leased until it is done or its process has ended: memory
//! that a stopped process is copying stays in quarantine until it goes on or dies. So does that of a
//! peer that broke the protocol meanwhile, until its connection ends; nothing else is done with it.

mod client;
mod cma;
mod link;
mod map;
mod message;
mod open;
mod opened;
mod page;
mod server;
mod slots;
mod socket;

#[cfg(test)]
mod tests;

use std::path::PathBuf;

use xxhash_rust::xxh3::xxh3_64;

pub(crate) use client::ShmClient;
pub(crate) use server::ShmServer;

#[cfg(any(test, feature = "test-util"))]
pub(crate) use {
    message::{fuzz_answer, fuzz_request},
    page::fuzz as fuzz_page,
};

use crate::backend::boot;
use crate::error::Result;
use crate::memory::random;

/// Where a process has a random number, and the number.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Proof {
    place: u64,
    value: u128,
}

/// A random number that stays where it is.
struct Secret {
    bytes: Box<[u8; 16]>,
    value: u128,
}

impl Secret {
    fn new() -> Result<Self> {
        let value = u128::from(random()?) << 64 | u128::from(random()?);
        Ok(Self { bytes: Box::new(value.to_le_bytes()), value })
    }

    fn proof(&self) -> Proof {
        // Another process reads it there.
        let place = self.bytes.as_ptr().expose_provenance() as u64;
        Proof { place, value: self.value }
    }
}

/// Returns a number that processes of one running kernel have in common; none if it does not say.
pub(crate) fn host() -> Option<u64> {
    boot::id().map(|id| xxh3_64(&id))
}

/// Returns the name of a socket, which is no file: it is found in one network namespace, and gone
/// with its process.
fn socket_path(socket: u64) -> PathBuf {
    PathBuf::from(format!("\0dynamo-transfer-{socket:016x}"))
}
