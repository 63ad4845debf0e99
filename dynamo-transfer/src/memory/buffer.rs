use std::fmt;
use std::ops::{Deref, DerefMut};
#[cfg(target_os = "linux")]
use std::sync::Arc;

#[cfg(target_os = "linux")]
use super::shared::{Mapping, SharedFile};
use crate::backend::cuda::{DeviceId, PinnedBuffer};
use crate::error::Result;

/// Host memory of a fixed size: zeroed, page-aligned, owned.
///
/// One made of a [`PinnedBuffer`] holds what that held, and is as aligned as its device allocates. The
/// clone of a shared or pinned buffer is neither.
pub struct HostBuffer {
    pages: Pages,
    len: usize,
}

enum Pages {
    Own(Vec<Page>),
    #[cfg(target_os = "linux")]
    Large(Mapping),
    #[cfg(target_os = "linux")]
    Shared {
        mapping: Mapping,
        file: Arc<SharedFile>,
    },
    Pinned(PinnedBuffer),
}

/// The file that a segment is the beginning of.
#[cfg(target_os = "linux")]
pub(crate) type SharedPart = Arc<SharedFile>;
#[cfg(not(target_os = "linux"))]
pub(crate) type SharedPart = std::convert::Infallible;

/// The page size of x86-64 and most of aarch64: what direct IO and device DMA align to.
const PAGE_BYTES: usize = 4096;

/// Two huge pages.
#[cfg(target_os = "linux")]
const LARGE_BYTES: usize = 4 << 20;

#[derive(Clone, Copy, bytemuck::Pod, bytemuck::Zeroable)]
#[repr(C, align(4096))]
struct Page([u8; PAGE_BYTES]);

impl HostBuffer {
    /// Allocates `len_bytes` bytes of zeros.
    pub fn new(len_bytes: usize) -> Self {
        // The kernel copies larger pages faster, and processor and kernel find them faster.
        #[cfg(target_os = "linux")]
        if len_bytes >= LARGE_BYTES
            && let Ok(mapping) = Mapping::of_zeros(len_bytes)
        {
            return Self { pages: Pages::Large(mapping), len: len_bytes };
        }
        let pages = bytemuck::zeroed_vec(len_bytes.div_ceil(PAGE_BYTES));
        Self { pages: Pages::Own(pages), len: len_bytes }
    }

    /// Allocates `len_bytes` bytes of zeros that peers on this host can map where this buffer itself
    /// is a segment of a region: they copy it once, as inside one process. Each such buffer keeps two
    /// files open. Elsewhere than on Linux it is as [`new`](Self::new).
    ///
    /// Fails with [`Overloaded`](crate::ErrorKind::Overloaded) if the system has no room for it.
    #[cfg(target_os = "linux")]
    pub fn shared(len_bytes: usize) -> Result<Self> {
        if len_bytes == 0 {
            return Ok(Self::new(0));
        }
        let no_room = |e| {
            let message = format!("no {len_bytes} bytes of shared memory");
            crate::error::Error::new(crate::error::ErrorKind::Overloaded, message).with_source(e)
        };
        let file = SharedFile::create(len_bytes).map_err(no_room)?;
        let mapping = file.map().map_err(no_room)?;
        Ok(Self { pages: Pages::Shared { mapping, file: Arc::new(file) }, len: len_bytes })
    }

    /// Allocates `len_bytes` bytes of zeros; on Linux, peers on this host could map them.
    ///
    /// Never fails.
    #[cfg(not(target_os = "linux"))]
    pub fn shared(len_bytes: usize) -> Result<Self> {
        Ok(Self::new(len_bytes))
    }

    /// Returns what other processes can map of it.
    pub(crate) fn part(&self) -> Option<SharedPart> {
        match &self.pages {
            Pages::Own(_) | Pages::Pinned(_) => None,
            #[cfg(target_os = "linux")]
            Pages::Large(_) => None,
            #[cfg(target_os = "linux")]
            Pages::Shared { file, .. } => Some(Arc::clone(file)),
        }
    }

    /// Returns the device that reaches it by itself.
    pub(super) fn pinned(&self) -> Option<DeviceId> {
        match &self.pages {
            Pages::Pinned(buffer) => Some(buffer.memory().device_id()),
            _ => None,
        }
    }
}

impl From<PinnedBuffer> for HostBuffer {
    /// Makes it memory for all that host memory is for; the device reaches it by itself as before.
    fn from(buffer: PinnedBuffer) -> Self {
        let len = buffer.len();
        Self { pages: Pages::Pinned(buffer), len }
    }
}

impl Deref for HostBuffer {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        match &self.pages {
            Pages::Own(pages) => &bytemuck::cast_slice(pages)[..self.len],
            #[cfg(target_os = "linux")]
            Pages::Large(mapping) | Pages::Shared { mapping, .. } => mapping.bytes(),
            Pages::Pinned(buffer) => buffer,
        }
    }
}

impl DerefMut for HostBuffer {
    fn deref_mut(&mut self) -> &mut [u8] {
        match &mut self.pages {
            Pages::Own(pages) => &mut bytemuck::cast_slice_mut(pages)[..self.len],
            #[cfg(target_os = "linux")]
            Pages::Large(mapping) | Pages::Shared { mapping, .. } => mapping.bytes_mut(),
            Pages::Pinned(buffer) => buffer,
        }
    }
}

impl Clone for HostBuffer {
    fn clone(&self) -> Self {
        let mut copy = Self::new(self.len);
        copy.copy_from_slice(self);
        copy
    }
}

impl AsRef<[u8]> for HostBuffer {
    fn as_ref(&self) -> &[u8] {
        self
    }
}

impl AsMut<[u8]> for HostBuffer {
    fn as_mut(&mut self) -> &mut [u8] {
        self
    }
}

impl fmt::Debug for HostBuffer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "HostBuffer({} bytes)", self.len)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    #[cfg_attr(miri, ignore = "asks the kernel for memory")]
    fn a_buffer_is_zeroed_page_aligned_and_of_its_size() {
        for len in [0, 1, 4096, 10_000, (4 << 20) + 1] {
            for mut buffer in [HostBuffer::new(len), HostBuffer::shared(len).unwrap()] {
                assert_eq!(buffer.len(), len);
                assert!(buffer.iter().all(|&byte| byte == 0));
                assert!(len == 0 || buffer.as_ptr().addr().is_multiple_of(PAGE_BYTES));
                buffer.fill(7);
                let copy = buffer.clone();
                drop(buffer);
                assert!(copy.len() == len && copy.iter().all(|&byte| byte == 7));
            }
        }
    }
}
