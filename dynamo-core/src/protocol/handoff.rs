use std::fmt;

use bytes::Bytes;

/// A claim on KV blocks that a prefill worker has staged for a decode worker.
///
/// The bytes belong to the block manager that issued them: a router carries a ticket, it never
/// reads one. A ticket is made by a server and must never be accepted from a client.
#[derive(Clone, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct HandoffTicket(Bytes);

impl HandoffTicket {
    /// Wraps the issuer's bytes.
    pub fn new(bytes: impl Into<Bytes>) -> Self {
        Self(bytes.into())
    }

    /// Returns the issuer's bytes.
    pub fn as_bytes(&self) -> &[u8] {
        &self.0
    }
}

impl fmt::Debug for HandoffTicket {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // The content grants access to memory: logs get its size only.
        write!(f, "HandoffTicket({} bytes)", self.0.len())
    }
}
