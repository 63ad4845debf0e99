#![expect(unsafe_code, reason = "a buffer is not borrowed while the kernel fills it")]

use std::future::Future;
use std::ptr::NonNull;

use tokio::sync::oneshot;

use super::io::FileAct;
use super::plan::FileChunk;
use super::region::FileRegion;
use super::store::FileStore;
use crate::error::{Error, ErrorKind, Result};
use crate::memory::Span;

/// Bytes of a file and their place in a buffer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct FileRange {
    /// Where in the file.
    pub offset: u64,
    /// Where in the buffer.
    pub at: usize,
    /// How many bytes.
    pub len: usize,
}

impl FileStore {
    /// Fills ranges of a buffer from a file; the buffer comes back with the number of bytes.
    ///
    /// Posts at once. Fails with [`OutOfBounds`](ErrorKind::OutOfBounds),
    /// [`Overloaded`](ErrorKind::Overloaded) at the limit of operations,
    /// [`Closed`](ErrorKind::Closed) after a shutdown, and [`Io`](ErrorKind::Io); the buffer then
    /// holds some of the bytes. It is `None` only if the kernel may still write to it.
    ///
    /// # Cancel safety
    /// Dropping the future cancels the operation; the buffer is freed when the kernel is done.
    pub fn read<B>(
        &self,
        file: &FileRegion,
        ranges: &[FileRange],
        buffer: B,
    ) -> impl Future<Output = (Result<u64>, Option<B>)> + Send + use<B>
    where
        B: AsMut<[u8]> + Send + 'static,
    {
        let (mut lease, returned) = Lease::new(buffer);
        // SAFETY: the lease is the buffer's one owner and has not been shared.
        let span = Span::of_mut(unsafe { lease.buffer.as_mut() }.as_mut());
        self.run(file, FileAct::Read, chunks(ranges, span), (lease, returned))
    }

    /// Fills buffers, each from its offset of a file on, as one operation: what adjoins in the file is
    /// one call to the kernel. They come back in their order.
    ///
    /// Fails like [`read`](Self::read), as a whole.
    ///
    /// # Cancel safety
    /// As [`read`](Self::read).
    pub fn read_all<B>(
        &self,
        file: &FileRegion,
        parts: Vec<(u64, B)>,
    ) -> impl Future<Output = (Result<u64>, Option<Vec<B>>)> + Send + use<B>
    where
        B: AsMut<[u8]> + Send + 'static,
    {
        let (offsets, buffers): (Vec<_>, Vec<_>) = parts.into_iter().unzip();
        let (mut lease, returned) = Lease::new(buffers);
        // SAFETY: the lease is the buffers' one owner and has not been shared; they stay in their
        // place, as the list of them does.
        let buffers = unsafe { lease.buffer.as_mut() }.iter_mut();
        let spans = buffers.map(|buffer| Span::of_mut(buffer.as_mut()));
        let chunks =
            offsets.into_iter().zip(spans).map(|(offset, span)| FileChunk { offset, span });
        let chunks = chunks.collect();
        self.run(file, FileAct::Read, Ok(chunks), (lease, returned))
    }

    /// Fills ranges of a file from a buffer; the buffer comes back with the number of bytes.
    ///
    /// Posts at once. Fails like [`read`](Self::read), with
    /// [`PermissionDenied`](ErrorKind::PermissionDenied) on a file opened for reading,
    /// [`StorageFull`](ErrorKind::StorageFull), and [`NotFound`](ErrorKind::NotFound) if the file
    /// was deleted meanwhile; some ranges may have been written. Ranges that overlap in the file are
    /// an [`InvalidArgument`](ErrorKind::InvalidArgument).
    ///
    /// # Cancel safety
    /// Dropping the future cancels the operation; some ranges may have been written.
    pub fn write<B>(
        &self,
        file: &FileRegion,
        ranges: &[FileRange],
        buffer: B,
    ) -> impl Future<Output = (Result<u64>, Option<B>)> + Send + use<B>
    where
        B: AsRef<[u8]> + Send + 'static,
    {
        let (lease, returned) = Lease::new(buffer);
        // SAFETY: the lease is the buffer's one owner.
        let span = Span::of(unsafe { lease.buffer.as_ref() }.as_ref());
        self.run(file, FileAct::Write, chunks(ranges, span), (lease, returned))
    }

    /// Writes buffers, each to its offset of a file, as one operation: what adjoins in the file is one
    /// call to the kernel. They come back in their order.
    ///
    /// Fails like [`write`](Self::write), as a whole; some may have been written.
    ///
    /// # Cancel safety
    /// As [`write`](Self::write).
    pub fn write_all<B>(
        &self,
        file: &FileRegion,
        parts: Vec<(u64, B)>,
    ) -> impl Future<Output = (Result<u64>, Option<Vec<B>>)> + Send + use<B>
    where
        B: AsRef<[u8]> + Send + 'static,
    {
        let (offsets, buffers): (Vec<_>, Vec<_>) = parts.into_iter().unzip();
        let (lease, returned) = Lease::new(buffers);
        // SAFETY: the lease is the buffers' one owner; they stay in their place, as the list of them
        // does.
        let buffers = unsafe { lease.buffer.as_ref() }.iter();
        let spans = buffers.map(|buffer| Span::of(buffer.as_ref()));
        let chunks =
            offsets.into_iter().zip(spans).map(|(offset, span)| FileChunk { offset, span });
        let chunks = chunks.collect();
        self.run(file, FileAct::Write, Ok(chunks), (lease, returned))
    }

    fn run<B: Send + 'static>(
        &self,
        file: &FileRegion,
        act: FileAct,
        chunks: Result<Vec<FileChunk>>,
        (lease, mut returned): (Lease<B>, oneshot::Receiver<B>),
    ) -> impl Future<Output = (Result<u64>, Option<B>)> + Send + use<B> {
        let posted = chunks.and_then(move |chunks| self.post(file, act, chunks, Box::new(lease)));
        async move {
            let result = match posted {
                Ok(operation) => operation.await,
                Err(error) => Err(error),
            };
            // A lease is dropped before its operation resolves.
            (result, returned.try_recv().ok())
        }
    }
}

/// Owns a buffer without borrowing it, and gives it back when it is dropped.
struct Lease<B> {
    /// Made of a box. It stays in its place, and nobody looks at it before the drop.
    buffer: NonNull<B>,
    sender: Option<oneshot::Sender<B>>,
}

// SAFETY: it owns its buffer as a box does.
unsafe impl<B: Send> Send for Lease<B> {}

impl<B> Lease<B> {
    fn new(buffer: B) -> (Self, oneshot::Receiver<B>) {
        let (sender, returned) = oneshot::channel();
        let buffer = NonNull::from(Box::leak(Box::new(buffer)));
        (Self { buffer, sender: Some(sender) }, returned)
    }
}

impl<B> Drop for Lease<B> {
    fn drop(&mut self) {
        // SAFETY: `new` made it of a box, only this takes it back, and the operation that used the
        // memory is over: that is when leases are dropped.
        let buffer = *unsafe { Box::from_raw(self.buffer.as_ptr()) };
        if let Some(sender) = self.sender.take() {
            // Nobody wants it back whose future was dropped.
            let _ = sender.send(buffer);
        }
    }
}

fn chunks(ranges: &[FileRange], span: Span) -> Result<Vec<FileChunk>> {
    let chunk = |range: &FileRange| {
        let FileRange { offset, at, len } = *range;
        if at.checked_add(len).is_none_or(|end| end > span.len()) {
            let message = format!("range {at}+{len} lies outside a buffer of {} bytes", span.len());
            return Err(Error::new(ErrorKind::OutOfBounds, message));
        }
        Ok(FileChunk { offset, span: span.slice(at, len) })
    };
    ranges.iter().map(chunk).collect()
}
