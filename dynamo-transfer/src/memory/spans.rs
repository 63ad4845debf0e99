use super::concat::{Concat, Pieces};
use super::span::Span;

/// Pieces of memory, one behind the other, addressed by offset.
#[derive(Debug)]
pub(crate) struct SpanList {
    spans: Vec<Span>,
    whole: Concat,
}

impl SpanList {
    pub(crate) fn new(spans: Vec<Span>) -> Self {
        let whole = Concat::new(spans.iter().map(|span| span.len() as u64));
        Self { spans, whole }
    }

    pub(crate) fn len(&self) -> u64 {
        self.whole.len()
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = Span> {
        self.spans.iter().copied()
    }

    /// Returns where `len` bytes from `offset` on are; less if the whole ends before.
    pub(crate) fn spans(&self, offset: u64, len: u64) -> Spans<'_> {
        Spans { spans: &self.spans, pieces: self.whole.pieces(offset, len) }
    }
}

/// The pieces of memory that a range covers.
#[derive(Clone)]
pub(crate) struct Spans<'a> {
    spans: &'a [Span],
    pieces: Pieces<'a>,
}

impl Iterator for Spans<'_> {
    type Item = Span;

    fn next(&mut self) -> Option<Span> {
        let (index, at, len) = self.pieces.next()?;
        // Both lie within one span, whose length is a usize.
        let within = |bytes| usize::try_from(bytes).unwrap_or(usize::MAX);
        Some(self.spans[index].slice(within(at), within(len)))
    }
}
