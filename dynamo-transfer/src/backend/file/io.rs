//! One read or write, and who runs it.

use std::fs::File;
use std::io;
use std::sync::Arc;

use super::operation::Operation;
#[cfg(any(test, feature = "test-util"))]
use super::plan::Alignment;
use super::plan::Step;
use crate::memory::Span;

/// What is done to the file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[cfg_attr(
    not(any(test, feature = "test-util")),
    expect(unreachable_pub, reason = "told to tests")
)]
#[non_exhaustive]
pub enum FileAct {
    /// Memory is filled from the file.
    Read,
    /// The file is filled from memory.
    Write,
    /// What was written reaches the device.
    Sync,
}

/// One call to the kernel, of one operation, whose lease keeps the memory of the spans alive.
pub(crate) struct Io {
    pub(super) act: FileAct,
    pub(super) direct: bool,
    pub(super) offset: u64,
    pub(super) spans: Vec<Span>,
    /// How many bytes there were when it set out.
    pub(super) size: usize,
    /// How many bytes of the spans are asked for at once: all, unless a test wants it short.
    pub(super) limit: usize,
    /// How often it was started without moving a byte.
    pub(super) tries: u32,
    pub(super) operation: Arc<Operation>,
}

/// Runs IOs.
///
/// # Contract
/// - Each IO is [finished](Io::finish) once, when the kernel is done with its memory, or
///   [abandoned](Io::abandon) and leaked, if that cannot be known.
/// - After `close` those that wait, and new ones, are finished with `CLOSED`; threads end when the
///   rest is done.
/// - `submit` does no IO and never waits for one. It is called from any thread, the engine's own
///   too. What waits is bounded by the operations' windows.
pub(crate) trait Engine: Send + Sync {
    fn submit(&self, batch: Vec<Io>);
    fn close(&self);
}

impl Io {
    pub(super) fn new(operation: &Arc<Operation>, step: Step) -> Self {
        let Step { offset, len, direct, spans } = step;
        let operation = Arc::clone(operation);
        Self {
            act: operation.act,
            direct,
            offset,
            spans,
            size: len,
            limit: len,
            tries: 0,
            operation,
        }
    }

    pub(super) fn sync(operation: &Arc<Operation>) -> Self {
        let operation = Arc::clone(operation);
        let (act, spans) = (FileAct::Sync, Vec::new());
        Self { act, direct: false, offset: 0, spans, size: 0, limit: 0, tries: 0, operation }
    }

    /// Returns the descriptor to use.
    pub(super) fn file(&self) -> &File {
        self.operation.file.descriptor(self.direct)
    }

    /// Returns the bytes that are left to move.
    pub(super) fn len(&self) -> usize {
        self.spans.iter().map(|span| span.len()).sum()
    }

    /// Forgets the first `moved` bytes.
    pub(super) fn advance(&mut self, moved: usize) {
        let mut left = moved;
        let gone = self.spans.iter().take_while(|span| {
            let is_gone = span.len() <= left;
            left -= if is_gone { span.len() } else { 0 };
            is_gone
        });
        let gone = gone.count();
        self.spans.drain(..gone);
        if let Some(first) = self.spans.first_mut() {
            *first = first.slice(left, first.len() - left);
        }
        self.offset += moved as u64;
        self.limit = self.len();
        self.tries = 0;
        let alignment = self.operation.file.alignment();
        self.direct &= alignment.is_some_and(|fit| fit.fits(self.offset, &self.spans));
    }

    /// Asks for the first `len` bytes only.
    #[cfg(any(test, feature = "test-util"))]
    pub(super) fn cut(&mut self, len: usize) {
        self.limit = len.min(self.limit);
        let alignment = self.operation.file.alignment();
        let is_whole = |fit: Alignment| (self.limit as u64).is_multiple_of(fit.offset);
        self.direct &= alignment.is_some_and(is_whole);
    }

    /// Tells whether it is not worth starting.
    pub(super) fn is_cancelled(&self) -> bool {
        self.operation.is_cancelled()
    }

    /// Tells the operation; the kernel no longer knows of this IO.
    pub(super) fn finish(self, result: io::Result<usize>) {
        Operation::finish(self, result);
    }

    /// Finishes it without having started it.
    pub(super) fn refuse(self, code: i32) {
        self.finish(Err(io::Error::from_raw_os_error(code)));
    }

    /// Tells the operation that it will never be known when the kernel is done with the memory.
    #[expect(clippy::mem_forget, reason = "memory that the kernel may still touch is never freed")]
    pub(super) fn abandon(self) {
        self.operation.abandon();
        std::mem::forget(self);
    }
}
