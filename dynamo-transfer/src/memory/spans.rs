use super::span::Span;

/// Pieces of memory, one behind the other, addressed by offset.
#[derive(Debug)]
pub(crate) struct SpanList {
    spans: Vec<Span>,
    /// Where each span ends within the whole.
    ends: Vec<u64>,
}

impl SpanList {
    pub(crate) fn new(spans: Vec<Span>) -> Self {
        let mut len = 0;
        let ends = spans.iter().map(|span| {
            len += span.len() as u64;
            len
        });
        let ends = ends.collect();
        Self { spans, ends }
    }

    pub(crate) fn len(&self) -> u64 {
        self.ends.last().copied().unwrap_or(0)
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = Span> {
        self.spans.iter().copied()
    }

    /// Returns where `len` bytes from `offset` on are; less if the whole ends before.
    pub(crate) fn spans(&self, offset: u64, len: u64) -> Spans<'_> {
        let index = self.ends.partition_point(|&end| end <= offset);
        Spans { list: self, index, offset, left: len }
    }
}

/// The pieces of memory that a range covers.
#[derive(Clone)]
pub(crate) struct Spans<'a> {
    list: &'a SpanList,
    index: usize,
    offset: u64,
    left: u64,
}

impl Iterator for Spans<'_> {
    type Item = Span;

    fn next(&mut self) -> Option<Span> {
        if self.left == 0 {
            return None;
        }
        let (span, end) = (*self.list.spans.get(self.index)?, self.list.ends[self.index]);
        let room = end - self.offset;
        let taken = room.min(self.left);
        // Both lie within one span, whose length is a usize.
        let within = |bytes| usize::try_from(bytes).unwrap_or(usize::MAX);
        let (at, len) = (span.len() - within(room), within(taken));
        self.index += 1;
        self.offset += taken;
        self.left -= taken;
        if len == 0 { self.next() } else { Some(span.slice(at, len)) }
    }
}
