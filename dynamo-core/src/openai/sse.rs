//! Server-sent events, as the WHATWG's HTML standard has them (§9.2.6): of each, its data.

use bytes::{Buf, Bytes};

use crate::error::{Error, ErrorKind, Result};

/// Finds the events in bytes that come in pieces, however these are cut.
///
/// Lines end with LF, CR or both; lines of data are joined by LF; comments, names, ids and an event
/// that is not followed by an empty line are passed over. What is kept at a time is one event of at
/// most [`EVENT_BYTES_MAX`].
#[derive(Debug, Default)]
pub(super) struct Events {
    /// Bytes that were not looked at yet.
    pending: Bytes,
    /// The line so far.
    line: Vec<u8>,
    /// The data of the event so far; `None` until it has any.
    data: Option<Vec<u8>>,
    /// Whether the last line ended with CR: an LF right behind it belongs to that end.
    is_after_cr: bool,
    has_begun: bool,
}

impl Events {
    /// Adds bytes behind those that there were.
    ///
    /// What was added before has to be used up: [`next`](Self::next) has said that there is no more.
    pub(super) fn push(&mut self, bytes: Bytes) {
        debug_assert!(self.pending.is_empty(), "events are taken before more bytes come");
        self.pending = bytes;
    }

    /// Returns the data of the next event, or `None` if it takes more bytes.
    ///
    /// Fails with [`Protocol`](ErrorKind::Protocol) if an event is too long; there are none after it.
    pub(super) fn next(&mut self) -> Result<Option<Vec<u8>>> {
        while !self.pending.is_empty() {
            if std::mem::take(&mut self.is_after_cr) && self.pending[0] == b'\n' {
                self.pending.advance(1);
                continue;
            }
            let end = self.pending.iter().position(|byte| matches!(byte, b'\r' | b'\n'));
            let piece = self.pending.split_to(end.unwrap_or(self.pending.len()));
            let kept = self.line.len() + self.data.as_ref().map_or(0, Vec::len);
            if kept + piece.len() > EVENT_BYTES_MAX {
                return Err(too_long());
            }
            self.line.extend_from_slice(&piece);
            if end.is_some() {
                self.is_after_cr = self.pending.get_u8() == b'\r';
                let event = self.end_line();
                if event.is_some() {
                    return Ok(event);
                }
            }
        }
        Ok(None)
    }

    /// Takes in the line; returns the event that it ends.
    fn end_line(&mut self) -> Option<Vec<u8>> {
        let mut line = std::mem::take(&mut self.line);
        if !std::mem::replace(&mut self.has_begun, true) && line.starts_with(BYTE_ORDER_MARK) {
            line.drain(..BYTE_ORDER_MARK.len());
        }
        if line.is_empty() {
            return self.data.take();
        }
        if let Some(value) = value(&line) {
            match &mut self.data {
                Some(data) => {
                    data.push(b'\n');
                    data.extend_from_slice(value);
                }
                None => self.data = Some(value.to_vec()),
            }
        }
        line.clear();
        self.line = line;
        None
    }
}

/// Returns what a line of data says, and nothing of other lines.
fn value(line: &[u8]) -> Option<&[u8]> {
    let rest = line.strip_prefix(b"data")?;
    match rest.split_first() {
        None => Some(rest),
        Some((b':', value)) => Some(value.strip_prefix(b" ").unwrap_or(value)),
        Some(_) => None,
    }
}

fn too_long() -> Error {
    Error::new(ErrorKind::Protocol, format!("event of a stream over {EVENT_BYTES_MAX} bytes"))
}

const BYTE_ORDER_MARK: &[u8] = "\u{feff}".as_bytes();

/// The first event may say the prompt's ids again: a million tokens.
pub(super) const EVENT_BYTES_MAX: usize = 8 << 20;

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::super::fuzz::{events, fuzz_sse};
    use super::*;

    fn texts(stream: &str) -> Vec<String> {
        let found = events([stream.as_bytes()]);
        found.into_iter().map(|event| String::from_utf8(event).unwrap()).collect()
    }

    #[test]
    fn an_event_is_its_lines_of_data_and_ends_with_an_empty_line() {
        for (stream, expected) in [
            ("data: a\n\ndata: b\n\n", &["a", "b"][..]),
            ("data: a\r\n\r\ndata: b\r\n\r\n", &["a", "b"]),
            ("data: a\r\rdata: b\r\r", &["a", "b"]),
            ("data: a\r\n\ndata: b\n\r\n", &["a", "b"]),
            ("data:a\ndata:  b\ndata\n\n", &["a\n b\n"]),
            (": ping\n\nevent: x\nid: 7\ndata: a\n\n", &["a"]),
            ("\u{feff}data: a\n\n", &["a"]),
            ("data: a\n\ndata: \u{feff}b\n", &["a"]),
            ("database: a\n\n\n\n", &[]),
            ("data\n\n", &[""]),
            ("", &[]),
        ] {
            assert_eq!(texts(stream), expected, "{stream:?}");
        }
    }

    #[test]
    fn an_event_that_never_ends_fails_with_what_came_before_it_intact() {
        let mut events = Events::default();
        events.push(Bytes::from_static(b"data: a\n\ndata: "));
        assert_eq!(events.next().unwrap().unwrap(), b"a");
        let piece = Bytes::from(vec![b'x'; 1 << 20]);
        let failed = (0..=EVENT_BYTES_MAX >> 20).find_map(|_| {
            assert_eq!(events.next().unwrap(), None);
            events.push(piece.clone());
            events.next().err()
        });
        assert_eq!(failed.unwrap().kind(), ErrorKind::Protocol);
    }

    /// What matters to the reader comes often, anything else now and then.
    fn stream() -> impl Strategy<Value = Vec<u8>> {
        let piece = prop_oneof![
            4 => prop::sample::select(vec!["\n", "\r", "\r\n", "data: ", "data:", ":", "[DONE]"])
                .prop_map(|text| text.as_bytes().to_vec()),
            1 => prop::collection::vec(any::<u8>(), 0..8),
        ];
        prop::collection::vec(piece, 0..40).prop_map(|pieces| pieces.concat())
    }

    proptest! {
        #[test]
        fn however_a_stream_is_cut_its_events_are_the_same(
            stream in stream(),
            cuts in prop::collection::vec(0_usize..200, 0..6),
        ) {
            let mut cuts: Vec<_> = cuts.into_iter().map(|cut| cut.min(stream.len())).collect();
            cuts.sort_unstable();
            let (mut pieces, mut from) = (Vec::new(), 0);
            for cut in cuts.into_iter().chain([stream.len()]) {
                pieces.push(&stream[from..cut]);
                from = cut;
            }
            prop_assert_eq!(events(pieces), events([&stream[..]]));
            fuzz_sse(&stream);
        }
    }
}
