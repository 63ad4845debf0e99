//! Device memory of one process in another of the same machine.

use std::fmt;

use crate::error::{Error, ErrorKind, Result};

/// Names device memory that its process has exported; goes to another process over any channel.
///
/// Whoever has it can open the memory, and the driver shares memory in pieces of 2 MiB: what is
/// smaller may have neighbours. Give it to no one who may not read and write them.
///
/// The exporter keeps the memory until every process that opened it has closed it: CUDA does not say
/// what happens otherwise.
#[derive(Clone, PartialEq, Eq)]
pub struct IpcHandle {
    /// The driver's own bytes.
    pub(crate) opaque: [u8; OPAQUE_BYTES],
    /// Which device it is, whatever number a process knows it by.
    pub(crate) device: [u8; UUID_BYTES],
    pub(crate) len: u64,
}

impl IpcHandle {
    /// Returns the size of the memory in bytes, as its exporter states it.
    pub fn len(&self) -> u64 {
        self.len
    }

    /// Tells whether the memory has no bytes.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Returns the handle as it goes to the other process.
    pub fn to_bytes(&self) -> Vec<u8> {
        [&[VERSION][..], &self.device, &self.len.to_le_bytes(), &self.opaque].concat()
    }

    /// Reads what [`to_bytes`](Self::to_bytes) wrote.
    ///
    /// Fails with [`Protocol`](ErrorKind::Protocol) if that is not what the bytes are.
    pub fn from_bytes(bytes: &[u8]) -> Result<Self> {
        let malformed = || {
            let message = format!("{} bytes that are no handle of device memory", bytes.len());
            Error::new(ErrorKind::Protocol, message)
        };
        let rest = bytes.strip_prefix(&[VERSION]).ok_or_else(malformed)?;
        let (device, rest) = rest.split_first_chunk().ok_or_else(malformed)?;
        let (len, rest) = rest.split_first_chunk().ok_or_else(malformed)?;
        let opaque = rest.try_into().map_err(|_| malformed())?;
        Ok(Self { opaque, device: *device, len: u64::from_le_bytes(*len) })
    }
}

/// The handle opens memory, so that it is not shown.
impl fmt::Debug for IpcHandle {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "IpcHandle({} bytes)", self.len)
    }
}

/// As CUDA has them: `CU_IPC_HANDLE_SIZE` and `CUuuid`.
pub(crate) const OPAQUE_BYTES: usize = 64;
pub(crate) const UUID_BYTES: usize = 16;

const VERSION: u8 = 1;

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn a_handle_survives_its_bytes_and_is_not_shown() {
        let handle = IpcHandle { opaque: [7; 64], device: [3; 16], len: 1 << 40 };
        let bytes = handle.to_bytes();
        assert_eq!(IpcHandle::from_bytes(&bytes).unwrap(), handle);
        assert_eq!(format!("{handle:?}"), "IpcHandle(1099511627776 bytes)");
        for wrong in [&bytes[..bytes.len() - 1], &[&bytes[..], &[0]].concat(), &[]] {
            assert_eq!(IpcHandle::from_bytes(wrong).unwrap_err().kind(), ErrorKind::Protocol);
        }
    }

    proptest! {
        #[test]
        fn any_bytes_are_a_handle_or_refused(bytes in prop::collection::vec(any::<u8>(), 0..120)) {
            if let Ok(handle) = IpcHandle::from_bytes(&bytes) {
                prop_assert_eq!(handle.to_bytes(), bytes);
            }
        }
    }
}
