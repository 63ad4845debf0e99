//! Greeting, frames and commands, as bytes; pure.

use crate::events::vllm::pack::Malformed;

/// What opens a connection, both ways.
pub(super) const GREETING_BYTES: usize = 64;

/// Returns our greeting: version 3.1, no security.
pub(super) fn greeting() -> [u8; GREETING_BYTES] {
    let mut bytes = [0; GREETING_BYTES];
    (bytes[0], bytes[9]) = (0xff, 0x7f);
    (bytes[MAJOR], bytes[MINOR]) = (3, 1);
    bytes[MECHANISM..MECHANISM + NULL.len()].copy_from_slice(NULL);
    bytes
}

/// Checks a peer's greeting, and returns the minor version that both know.
pub(super) fn check_greeting(bytes: &[u8; GREETING_BYTES]) -> Result<u8, Malformed> {
    if (bytes[0], bytes[9]) != (0xff, 0x7f) {
        return Err(Malformed { what: "the peer does not speak ZMTP", at: 0 });
    }
    if bytes[MAJOR] < 3 {
        return Err(Malformed { what: "the peer's ZMTP is older than 3.0", at: MAJOR });
    }
    let mechanism = &bytes[MECHANISM..MECHANISM + 20];
    if !mechanism.starts_with(NULL) || mechanism[NULL.len()..].iter().any(|byte| *byte != 0) {
        return Err(Malformed { what: "the peer wants security", at: MECHANISM });
    }
    Ok(if bytes[MAJOR] > 3 { 1 } else { bytes[MINOR].min(1) })
}

/// Appends a command.
pub(super) fn write_command(out: &mut Vec<u8>, name: &str, body: &[u8]) {
    write_head(out, COMMAND, 1 + name.len() + body.len());
    write_short(out, name.as_bytes());
    out.extend_from_slice(body);
}

/// Appends a message of these parts.
pub(super) fn write_message(out: &mut Vec<u8>, parts: &[&[u8]]) {
    for (place, part) in parts.iter().enumerate() {
        write_head(out, if place + 1 < parts.len() { MORE } else { 0 }, part.len());
        out.extend_from_slice(part);
    }
}

/// Appends a property of a `READY` command.
pub(super) fn write_property(out: &mut Vec<u8>, name: &str, value: &str) {
    write_short(out, name.as_bytes());
    out.extend_from_slice(&u32::try_from(value.len()).unwrap_or(0).to_be_bytes());
    out.extend_from_slice(value.as_bytes());
}

/// Returns a property of a `READY` command's body.
pub(super) fn property<'a>(mut body: &'a [u8], name: &str) -> Option<&'a [u8]> {
    loop {
        let (len, rest) = body.split_first()?;
        let (key, rest) = rest.split_at_checked(usize::from(*len))?;
        let (len, rest) = rest.split_first_chunk()?;
        let (value, rest) = rest.split_at_checked(u32::from_be_bytes(*len) as usize)?;
        if key.eq_ignore_ascii_case(name.as_bytes()) {
            return Some(value);
        }
        body = rest;
    }
}

fn write_head(out: &mut Vec<u8>, flags: u8, len: usize) {
    if let Ok(len) = u8::try_from(len) {
        out.extend_from_slice(&[flags, len]);
    } else {
        out.push(flags | LONG);
        out.extend_from_slice(&(len as u64).to_be_bytes());
    }
}

fn write_short(out: &mut Vec<u8>, text: &[u8]) {
    out.push(u8::try_from(text.len()).unwrap_or(0));
    out.extend_from_slice(text);
}

/// What a peer sent.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Received {
    Command { name: Vec<u8>, body: Vec<u8> },
    Message(Vec<Vec<u8>>),
}

/// Cuts what arrives into messages and commands, whatever the pieces it arrives in.
#[derive(Debug)]
pub(super) struct Inbox {
    bytes_max: usize,
    bytes: Vec<u8>,
    /// Where the next frame begins.
    start: usize,
    /// The parts of a message that has more to come.
    parts: Vec<Vec<u8>>,
    parts_bytes: usize,
}

impl Inbox {
    /// Takes messages and commands of at most `bytes_max`.
    pub(super) fn new(bytes_max: usize) -> Self {
        Self { bytes_max, bytes: Vec::new(), start: 0, parts: Vec::new(), parts_bytes: 0 }
    }

    pub(super) fn push(&mut self, bytes: &[u8]) {
        if self.start > 0 {
            self.bytes.drain(..self.start);
            self.start = 0;
        }
        self.bytes.extend_from_slice(bytes);
    }

    /// Returns what comes next, once all of it is here.
    ///
    /// A frame that is too long is refused by its head alone.
    pub(super) fn next(&mut self) -> Result<Option<Received>, Malformed> {
        loop {
            let Some((flags, body, end)) = self.frame()? else { return Ok(None) };
            let frame = &self.bytes[body..end];
            self.start = end;
            if flags & COMMAND != 0 {
                let split = frame.split_first();
                let split = split.and_then(|(len, rest)| rest.split_at_checked(usize::from(*len)));
                let (name, body) = split.ok_or_else(|| wrong("a command without a name"))?;
                return Ok(Some(Received::Command { name: name.to_vec(), body: body.to_vec() }));
            }
            self.parts_bytes += frame.len();
            self.parts.push(frame.to_vec());
            if flags & MORE == 0 {
                self.parts_bytes = 0;
                return Ok(Some(Received::Message(std::mem::take(&mut self.parts))));
            }
            if self.parts.len() >= PARTS_MAX {
                return Err(wrong("a message of too many parts"));
            }
        }
    }

    /// Returns the flags of the next frame, and where its body begins and ends.
    fn frame(&self) -> Result<Option<(u8, usize, usize)>, Malformed> {
        let rest = &self.bytes[self.start..];
        let Some((&flags, rest)) = rest.split_first() else { return Ok(None) };
        if flags & !(MORE | LONG | COMMAND) != 0 || flags & COMMAND != 0 && flags & MORE != 0 {
            return Err(wrong("a frame with flags that mean nothing"));
        }
        let (len, head) = if flags & LONG == 0 {
            let Some(len) = rest.first() else { return Ok(None) };
            (u64::from(*len), 2)
        } else {
            let Some(len) = rest.first_chunk() else { return Ok(None) };
            (u64::from_be_bytes(*len), 9)
        };
        let len = usize::try_from(len).unwrap_or(usize::MAX);
        if len > self.bytes_max.saturating_sub(self.parts_bytes) {
            return Err(wrong("a message that is too large"));
        }
        let body = self.start + head;
        let end = body.saturating_add(len);
        Ok((self.bytes.len() >= end).then_some((flags, body, end)))
    }
}

fn wrong(what: &'static str) -> Malformed {
    Malformed { what, at: 0 }
}

const MAJOR: usize = 10;
const MINOR: usize = 11;
const MECHANISM: usize = 12;
const NULL: &[u8] = b"NULL";

const MORE: u8 = 1;
const LONG: u8 = 2;
const COMMAND: u8 = 4;

/// Messages of vLLM have three parts, those of a replay at most five.
const PARTS_MAX: usize = 8;

/// Whatever arrives, in whatever pieces, it is cut alike, and refused alike.
///
/// # Panics
/// If not.
#[cfg(any(test, feature = "test-util"))]
pub(crate) fn fuzz(data: &[u8]) {
    let cut = |piece: usize| {
        let (mut inbox, mut received) = (Inbox::new(FUZZ_BYTES_MAX), Vec::new());
        for piece in data.chunks(piece) {
            inbox.push(piece);
            loop {
                match inbox.next() {
                    Ok(Some(next)) => received.push(next),
                    Ok(None) => break,
                    Err(wrong) => return (received, Some(wrong)),
                }
            }
        }
        (received, None)
    };
    assert_eq!(cut(1), cut(data.len().max(1)));
}

#[cfg(any(test, feature = "test-util"))]
const FUZZ_BYTES_MAX: usize = 300;
