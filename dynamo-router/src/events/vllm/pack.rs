//! MessagePack, as far as events need it: a reader over a slice, pure.

use std::fmt;

/// Bytes that are not what they should be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Malformed {
    /// What is wrong.
    pub what: &'static str,
    /// The byte at which that shows, counted from 0.
    pub at: usize,
}

impl fmt::Display for Malformed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} at byte {}", self.what, self.at)
    }
}

/// Reads value after value; a length is believed only as far as bytes follow that can fill it.
#[derive(Debug, Clone)]
pub(super) struct Reader<'a> {
    bytes: &'a [u8],
    at: usize,
}

/// A value, or the head of one that has elements.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) enum Value<'a> {
    Nil,
    Unsigned(u64),
    Negative(i64),
    Text(&'a [u8]),
    Binary(&'a [u8]),
    /// So many values follow.
    Array(usize),
    /// So many pairs of values follow.
    Map(usize),
    /// Of a type that no event has: a float, a boolean or an extension.
    Other,
}

impl<'a> Reader<'a> {
    pub(super) fn new(bytes: &'a [u8]) -> Self {
        Self { bytes, at: 0 }
    }

    /// Says that what was read last is wrong.
    pub(super) fn wrong(&self, what: &'static str) -> Malformed {
        Malformed { what, at: self.at }
    }

    pub(super) fn value(&mut self) -> Result<Value<'a>, Malformed> {
        let marker = self.take(1)?[0];
        let low = usize::from(marker);
        Ok(match marker {
            0x00..=0x7f => Value::Unsigned(u64::from(marker)),
            0x80..=0x8f => self.map(low & 0x0f)?,
            0x90..=0x9f => self.array(low & 0x0f)?,
            0xa0..=0xbf => Value::Text(self.take(low & 0x1f)?),
            0xc0 => Value::Nil,
            0xc1 => return Err(self.wrong("a byte that begins no value")),
            0xc2 | 0xc3 => Value::Other,
            0xc4..=0xc6 => Value::Binary(self.counted(1 << (marker - 0xc4))?),
            0xc7..=0xc9 => {
                let len = self.len(1 << (marker - 0xc7))?;
                self.take(1)?;
                self.take(len)?;
                Value::Other
            }
            0xca | 0xcb => self.other(4 << (marker - 0xca))?,
            0xcc..=0xcf => Value::Unsigned(self.unsigned(1 << (marker - 0xcc))?),
            0xd0..=0xd3 => self.signed(1 << (marker - 0xd0))?,
            0xd4..=0xd8 => self.other(1 + (1 << (marker - 0xd4)))?,
            0xd9..=0xdb => Value::Text(self.counted(1 << (marker - 0xd9))?),
            0xdc | 0xdd => {
                let len = self.len(2 << (marker - 0xdc))?;
                self.array(len)?
            }
            0xde | 0xdf => {
                let len = self.len(2 << (marker - 0xde))?;
                self.map(len)?
            }
            0xe0..=0xff => Value::Negative(i64::from(marker.cast_signed())),
        })
    }

    /// Passes over one value with all that is in it; however deep, without recursion.
    pub(super) fn skip(&mut self) -> Result<(), Malformed> {
        let mut left = 1_u64;
        while left > 0 {
            left -= 1;
            left += match self.value()? {
                Value::Array(len) => len as u64,
                Value::Map(len) => 2 * len as u64,
                _ => 0,
            };
        }
        Ok(())
    }

    /// Passes over one value, and returns its bytes.
    pub(super) fn raw(&mut self) -> Result<&'a [u8], Malformed> {
        let start = self.at;
        self.skip()?;
        Ok(&self.bytes[start..self.at])
    }

    /// Checks that nothing follows.
    pub(super) fn end(&self) -> Result<(), Malformed> {
        if self.at == self.bytes.len() { Ok(()) } else { Err(self.wrong("bytes behind the end")) }
    }

    fn take(&mut self, len: usize) -> Result<&'a [u8], Malformed> {
        let rest = &self.bytes[self.at..];
        let taken = rest.get(..len).ok_or_else(|| self.wrong("the end is missing"))?;
        self.at += len;
        Ok(taken)
    }

    fn unsigned(&mut self, len: usize) -> Result<u64, Malformed> {
        let bytes = self.take(len)?;
        Ok(bytes.iter().fold(0, |number, byte| number << 8 | u64::from(*byte)))
    }

    fn signed(&mut self, len: usize) -> Result<Value<'a>, Malformed> {
        let unused = 64 - 8 * len;
        let number = (self.unsigned(len)? << unused).cast_signed() >> unused;
        Ok(u64::try_from(number).map_or(Value::Negative(number), Value::Unsigned))
    }

    fn len(&mut self, len: usize) -> Result<usize, Malformed> {
        let len = self.unsigned(len)?;
        usize::try_from(len).map_err(|_| self.wrong("a length beyond memory"))
    }

    fn counted(&mut self, len: usize) -> Result<&'a [u8], Malformed> {
        let len = self.len(len)?;
        self.take(len)
    }

    fn other(&mut self, len: usize) -> Result<Value<'a>, Malformed> {
        self.take(len)?;
        Ok(Value::Other)
    }

    fn array(&self, len: usize) -> Result<Value<'a>, Malformed> {
        self.filled(len, 1).map(Value::Array)
    }

    fn map(&self, len: usize) -> Result<Value<'a>, Malformed> {
        self.filled(len, 2).map(Value::Map)
    }

    /// Returns `len` if so many elements of `least` bytes can follow.
    fn filled(&self, len: usize, least: usize) -> Result<usize, Malformed> {
        let rest = self.bytes.len() - self.at;
        if len > rest / least { Err(self.wrong("more elements than bytes")) } else { Ok(len) }
    }
}
