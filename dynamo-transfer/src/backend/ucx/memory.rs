//! Memory mapped for one-sided access, and the keys that open a peer's.

#![expect(unsafe_code, reason = "calls of a C library")]

use std::ptr;
use std::slice;
use std::sync::Arc;

use super::library::Library;
use super::port::{EndpointId, Port};
use super::sys::{self, ContextHandle, MemMapParams, MemoryHandle, RemoteKeyHandle};
use crate::error::{Error, ErrorKind, Result};
use crate::memory::Span;

/// A piece of memory that peers with its key may access; no more once it is dropped.
///
/// Whoever keeps it keeps a lease of the memory too, and the context's port for longer.
pub(super) struct Mapped {
    raw: MemoryHandle,
    context: ContextHandle,
    library: Arc<Library>,
    pub(super) span: Span,
}

impl Mapped {
    pub(super) fn new(port: &Port, span: Span) -> Result<Self> {
        let (library, context) = (Arc::clone(port.worker.library()), port.worker.context());
        let params = MemMapParams {
            field_mask: sys::MEM_MAP_PARAM_ADDRESS | sys::MEM_MAP_PARAM_LENGTH,
            address: span.as_ptr().cast(),
            length: span.len(),
            flags: 0,
            prot: 0,
            memory_type: 0,
        };
        let mut raw = ptr::null_mut();
        // SAFETY: the span is leased for longer than it is mapped.
        let status =
            unsafe { (library.functions().ucp_mem_map)(context, &raw const params, &raw mut raw) };
        library.check(status, "ucp_mem_map")?;
        Ok(Self { raw, context, library, span })
    }

    /// Returns the key that lets a peer in.
    pub(super) fn key(&self) -> Result<Vec<u8>> {
        let functions = self.library.functions();
        let (mut key, mut len) = (ptr::null_mut(), 0);
        // SAFETY: the memory is mapped; a buffer and its length are written.
        let status = unsafe {
            (functions.ucp_rkey_pack)(self.context, self.raw, &raw mut key, &raw mut len)
        };
        self.library.check(status, "ucp_rkey_pack")?;
        // SAFETY: UCX returned that many bytes, and they are copied before they are released.
        let bytes = unsafe { slice::from_raw_parts(key.cast::<u8>(), len) }.to_vec();
        // SAFETY: the buffer was packed above and is released once.
        unsafe { (functions.ucp_rkey_buffer_release)(key) };
        Ok(bytes)
    }
}

impl Drop for Mapped {
    fn drop(&mut self) {
        // SAFETY: mapped by `new`, unmapped once; the context is still there.
        unsafe { (self.library.functions().ucp_mem_unmap)(self.context, self.raw) };
    }
}

/// A key to memory of a peer, for one endpoint, which is closed later.
pub(super) struct RemoteKey {
    pub(super) raw: RemoteKeyHandle,
    library: Arc<Library>,
}

impl RemoteKey {
    pub(super) fn new(port: &Port, endpoint: EndpointId, key: &[u8]) -> Result<Self> {
        let library = Arc::clone(port.worker.library());
        let handle = port.handle(endpoint).ok_or_else(|| {
            Error::new(ErrorKind::Disconnected, "the endpoint for one-sided access is closed")
        })?;
        // Whoever wrote it, reading it does not leave what is allocated here too soon.
        let mut padded = key.to_vec();
        padded.resize(key.len() + 4096, 0);
        let mut raw = ptr::null_mut();
        // SAFETY: the endpoint is open. Nobody checks that the peer packed the key: whoever was
        // linked to is trusted not to forge one, as SECURITY.md says, and what it reads is padded.
        let status = unsafe {
            (library.functions().ucp_ep_rkey_unpack)(handle, padded.as_ptr().cast(), &raw mut raw)
        };
        library.check(status, "ucp_ep_rkey_unpack")?;
        Ok(Self { raw, library })
    }
}

impl Drop for RemoteKey {
    fn drop(&mut self) {
        // SAFETY: unpacked by `new`, destroyed once; its worker is still there.
        unsafe { (self.library.functions().ucp_rkey_destroy)(self.raw) };
    }
}
