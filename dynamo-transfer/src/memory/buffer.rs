use std::fmt;
use std::ops::{Deref, DerefMut};

/// Host memory of a fixed size: zeroed, page-aligned, owned.
#[derive(Clone)]
pub struct HostBuffer {
    pages: Vec<Page>,
    len: usize,
}

/// The page size of x86-64 and most of aarch64: what direct IO and device DMA align to.
const PAGE_BYTES: usize = 4096;

#[derive(Clone, Copy, bytemuck::Pod, bytemuck::Zeroable)]
#[repr(C, align(4096))]
struct Page([u8; PAGE_BYTES]);

impl HostBuffer {
    /// Allocates `len_bytes` bytes of zeros.
    pub fn new(len_bytes: usize) -> Self {
        let pages = bytemuck::zeroed_vec(len_bytes.div_ceil(PAGE_BYTES));
        Self { pages, len: len_bytes }
    }
}

impl Deref for HostBuffer {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        &bytemuck::cast_slice(&self.pages)[..self.len]
    }
}

impl DerefMut for HostBuffer {
    fn deref_mut(&mut self) -> &mut [u8] {
        &mut bytemuck::cast_slice_mut(&mut self.pages)[..self.len]
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
    fn a_buffer_is_zeroed_page_aligned_and_of_its_size() {
        for len in [0, 1, 4096, 10_000] {
            let buffer = HostBuffer::new(len);
            assert_eq!(buffer.len(), len);
            assert!(buffer.iter().all(|&byte| byte == 0));
            assert!(len == 0 || buffer.as_ptr().addr().is_multiple_of(PAGE_BYTES));
        }
    }
}
