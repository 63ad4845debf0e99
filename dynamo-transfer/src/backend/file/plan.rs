//! Which reads or writes make up an operation; pure.

use crate::error::{Error, ErrorKind, Result};
use crate::memory::Span;

/// Bytes at `offset` of a file, and the memory they come from or go to.
#[derive(Debug, Clone, Copy)]
pub(crate) struct FileChunk {
    pub(crate) offset: u64,
    pub(crate) span: Span,
}

/// What direct IO on a file wants to be multiples.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Alignment {
    /// Of offsets and lengths: a page at least, so that no page is touched directly and through
    /// the page cache by one operation.
    pub(crate) offset: u64,
    /// Of addresses.
    pub(crate) memory: usize,
}

/// One read or write: contiguous in the file, scattered in memory.
#[derive(Debug)]
pub(crate) struct Step {
    pub(crate) offset: u64,
    pub(crate) len: usize,
    /// Past the page cache.
    pub(crate) direct: bool,
    pub(crate) spans: Vec<Span>,
}

impl Alignment {
    /// Tells whether the whole of this may go past the page cache.
    pub(crate) fn fits(self, offset: u64, spans: &[Span]) -> bool {
        offset.is_multiple_of(self.offset)
            && spans.iter().all(|span| {
                span.as_ptr().addr().is_multiple_of(self.memory)
                    && (span.len() as u64).is_multiple_of(self.offset)
            })
    }
}

/// Turns chunks into steps in the order of the file: aligned middles go directly if there is an
/// `alignment`, the rest through the page cache; neighbours are joined, long ones are cut.
///
/// Chunks that lie on each other are refused if `is_write`: which of them wins would be chance.
pub(crate) fn steps(
    chunks: impl IntoIterator<Item = FileChunk>,
    alignment: Option<Alignment>,
    is_write: bool,
) -> Result<Vec<Step>> {
    let mut parts = Vec::new();
    for chunk in chunks {
        split(chunk, alignment, &mut parts);
    }
    parts.sort_by_key(|part| part.offset);
    let mut steps: Vec<Step> = Vec::new();
    for part in parts {
        let last = steps.last_mut();
        let end = last.as_ref().map_or(0, |last| last.offset + last.len as u64);
        if is_write && part.offset < end {
            let message = format!("two chunks write to offset {} of the file", part.offset);
            return Err(Error::new(ErrorKind::InvalidArgument, message));
        }
        match last {
            Some(last)
                if end == part.offset
                    && last.direct == part.direct
                    && last.len + part.span.len() <= STEP_BYTES
                    && last.spans.len() < STEP_SPANS =>
            {
                last.len += part.span.len();
                last.spans.push(part.span);
            }
            _ => {
                let Part { offset, direct, span } = part;
                steps.push(Step { offset, len: span.len(), direct, spans: vec![span] });
            }
        }
    }
    Ok(steps)
}

struct Part {
    offset: u64,
    direct: bool,
    span: Span,
}

/// Cuts a chunk into its aligned middle and its edges, and those to the length of a step.
fn split(chunk: FileChunk, alignment: Option<Alignment>, parts: &mut Vec<Part>) {
    let FileChunk { offset, span } = chunk;
    let (head, middle) = direct_middle(offset, span, alignment).unwrap_or((span.len(), 0));
    let ends = [(head, false), (head + middle, true), (span.len(), false)];
    let mut at = 0;
    for (end, direct) in ends {
        while at < end {
            let len = (end - at).min(STEP_BYTES);
            parts.push(Part { offset: offset + at as u64, direct, span: span.slice(at, len) });
            at += len;
        }
    }
}

/// Returns the lengths of the head and of the middle that can go directly.
fn direct_middle(offset: u64, span: Span, alignment: Option<Alignment>) -> Option<(usize, usize)> {
    let alignment = alignment?;
    let end = offset + span.len() as u64;
    let from = offset.checked_next_multiple_of(alignment.offset)?;
    let middle = (end - end % alignment.offset).checked_sub(from).filter(|len| *len > 0)?;
    let (head, middle) = (usize::try_from(from - offset).ok()?, usize::try_from(middle).ok()?);
    let is_aligned = (span.as_ptr().addr() + head).is_multiple_of(alignment.memory);
    let is_worth_it = middle == span.len() || middle >= MIDDLE_BYTES_MIN;
    (is_aligned && is_worth_it).then_some((head, middle))
}

/// Long enough for a device to be busy, short enough to notice a cancellation; a multiple of every
/// alignment in use.
pub(crate) const STEP_BYTES: usize = 1 << 20;

/// The kernel takes no more pieces of memory in one call (`IOV_MAX`).
const STEP_SPANS: usize = 1024;

/// A shorter middle is not worth the flush of its neighbours out of the page cache.
const MIDDLE_BYTES_MIN: usize = 64 << 10;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::memory::HostBuffer;
    use proptest::prelude::*;

    const ALIGNMENT: Alignment = Alignment { offset: 4096, memory: 512 };

    fn chunk(buffer: &HostBuffer, offset: u64, at: usize, len: usize) -> FileChunk {
        FileChunk { offset, span: Span::of(&buffer[at..at + len]) }
    }

    /// Returns (file offset, memory address, direct) of each byte that the steps move.
    fn bytes(steps: &[Step]) -> Vec<(u64, usize, bool)> {
        let mut all = Vec::new();
        for step in steps {
            let mut offset = step.offset;
            for span in &step.spans {
                let from = span.as_ptr().addr();
                all.extend((0..span.len()).map(|i| (offset + i as u64, from + i, step.direct)));
                offset += span.len() as u64;
            }
            assert_eq!(offset - step.offset, step.len as u64);
        }
        all
    }

    #[test]
    fn neighbours_are_joined_and_an_aligned_middle_goes_directly() {
        let buffer = HostBuffer::new(256 << 10);
        let joined = [chunk(&buffer, 8192, 4096, 4096), chunk(&buffer, 4096, 65536, 4096)];
        let plan = steps(joined, Some(ALIGNMENT), true).unwrap();
        assert_eq!((plan.len(), plan[0].offset, plan[0].len), (1, 4096, 8192));
        assert!(plan[0].direct && plan[0].spans.len() == 2);

        let odd = chunk(&buffer, 4096 - 512, 4096 - 512, (128 << 10) + 1024);
        let plan = steps([odd], Some(ALIGNMENT), true).unwrap();
        let shape: Vec<_> = plan.iter().map(|s| (s.offset, s.len, s.direct)).collect();
        let expected =
            [(3584, 512, false), (4096, 128 << 10, true), (4096 + (128 << 10), 512, false)];
        assert_eq!(shape, expected);

        // Memory and file are out of step: there is no direct way.
        let plan = steps([chunk(&buffer, 4096, 100, 128 << 10)], Some(ALIGNMENT), true).unwrap();
        assert!(plan.iter().all(|step| !step.direct));
    }

    #[test]
    fn writes_on_each_other_are_refused_and_reads_are_not() {
        let buffer = HostBuffer::new(64);
        let twice = || [chunk(&buffer, 10, 0, 20), chunk(&buffer, 29, 20, 20)];
        let error = steps(twice(), None, true).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::InvalidArgument);
        assert_eq!(steps(twice(), None, false).unwrap().len(), 2);
    }

    #[test]
    fn steps_are_as_long_as_they_may_be_and_no_longer() {
        let buffer = HostBuffer::new(3 * STEP_BYTES);
        let whole = steps([chunk(&buffer, 0, 0, 3 * STEP_BYTES)], None, true).unwrap();
        assert_eq!(whole.iter().map(|step| step.len).collect::<Vec<_>>(), [STEP_BYTES; 3]);
        let many = (0..2 * STEP_SPANS).map(|i| chunk(&buffer, i as u64, 2 * i, 1));
        let spans: Vec<_> =
            steps(many, None, true).unwrap().iter().map(|s| s.spans.len()).collect();
        assert_eq!(spans, [STEP_SPANS; 2]);
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(32))]
        #[test]
        fn every_byte_is_moved_exactly_once_between_its_places(
            list in prop::collection::vec((0u64..6, 0u64..3, 1usize..200_000, any::<bool>()), 0..8),
            direct in any::<bool>(),
        ) {
            let buffer = HostBuffer::new(4 << 20);
            let (mut offset, mut at) = (0, 0usize);
            let mut chunks = Vec::new();
            for (gap, unit, len, aligned) in list {
                let unit = [1, 512, 4096][usize::try_from(unit).unwrap()];
                offset += gap * unit;
                if aligned {
                    // In step with the file: a middle of it can go directly.
                    let phase = usize::try_from(offset % 4096).unwrap();
                    at = at.next_multiple_of(4096) + phase;
                }
                chunks.push(chunk(&buffer, offset, at, len));
                (offset, at) = (offset + len as u64, at + len);
            }
            let mut expected: Vec<(u64, usize)> = chunks
                .iter()
                .flat_map(|c| (0..c.span.len()).map(|i| (c.offset + i as u64, c.span.as_ptr().addr() + i)))
                .collect();
            expected.sort_unstable();
            chunks.reverse();
            let alignment = direct.then_some(ALIGNMENT);
            let plan = steps(chunks, alignment, true).unwrap();
            let moved: Vec<_> = bytes(&plan).into_iter().map(|b| (b.0, b.1)).collect();
            prop_assert_eq!(moved, expected);
            for step in &plan {
                prop_assert!(step.len <= STEP_BYTES && step.spans.len() <= STEP_SPANS);
                prop_assert!(!step.direct || (direct && ALIGNMENT.fits(step.offset, &step.spans)));
            }
        }
    }
}
