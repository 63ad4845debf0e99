//! The GGUF container (versions 2 and 3), parsed without trust.
//!
//! Format: <https://github.com/ggml-org/ggml/blob/master/docs/gguf.md>. Every length is checked
//! against what is left of the file before anything is allocated.

use std::collections::HashMap;

use candle_core::quantized::GgmlDType;

use super::error::{Error, Result};

/// A parsed file: metadata, and tensors as ranges of the file's bytes.
pub(super) struct Gguf<'a> {
    metadata: HashMap<String, Value>,
    tensors: HashMap<String, TensorEntry>,
    data: &'a [u8],
}

/// One metadata value.
pub(super) enum Value {
    Unsigned(u64),
    Signed(i64),
    Float(f64),
    Text(String),
    List(Vec<Self>),
}

struct TensorEntry {
    /// Outermost axis first, as candle has it.
    dims: Vec<usize>,
    dtype: GgmlDType,
    offset: usize,
}

/// A tensor as it stands in the file.
pub(super) struct RawTensor<'a> {
    pub(super) dims: Vec<usize>,
    pub(super) dtype: GgmlDType,
    pub(super) bytes: &'a [u8],
}

impl<'a> Gguf<'a> {
    pub(super) fn parse(file: &'a [u8]) -> Result<Self> {
        let mut reader = Reader { file, at: 0 };
        if file.get(..4) != Some(b"GGUF") {
            return Err(Error::NotGguf(file.iter().take(4).copied().collect()));
        }
        reader.at = 4;
        let version = reader.u32("version")?;
        if !(2..=3).contains(&version) {
            return Err(Error::Unsupported(format!("GGUF version {version}")));
        }
        let tensor_count = reader.count("tensor count", TENSOR_BYTES_MIN)?;
        let metadata_count = reader.count("metadata count", METADATA_BYTES_MIN)?;
        let mut metadata = HashMap::new();
        for _ in 0..metadata_count {
            let key = reader.text("metadata key")?;
            let kind = reader.u32(&key)?;
            let value = reader.value(&key, kind, 0)?;
            metadata.insert(key, value);
        }
        let mut tensors = HashMap::new();
        for _ in 0..tensor_count {
            let (name, entry) = reader.tensor()?;
            tensors.insert(name, entry);
        }
        let alignment = match metadata.get("general.alignment") {
            None => 32,
            Some(Value::Unsigned(alignment))
                if alignment.is_multiple_of(8) && (8..=1 << 20).contains(alignment) =>
            {
                usize::try_from(*alignment).unwrap_or(32)
            }
            Some(_) => return Err(Error::Corrupt("general.alignment".to_owned())),
        };
        let misplaced =
            |(_, entry): &(&String, &TensorEntry)| !entry.offset.is_multiple_of(alignment);
        if let Some((name, entry)) = tensors.iter().find(misplaced) {
            return Err(Error::Corrupt(format!("tensor {name} at odd offset {}", entry.offset)));
        }
        let start = reader.at.next_multiple_of(alignment);
        let data = file.get(start..).ok_or_else(|| Error::Truncated("tensor data".to_owned()))?;
        Ok(Self { metadata, tensors, data })
    }

    pub(super) fn get(&self, key: &str) -> Option<&Value> {
        self.metadata.get(key)
    }

    pub(super) fn require(&self, key: &str) -> Result<&Value> {
        self.get(key).ok_or_else(|| Error::Missing(key.to_owned()))
    }

    pub(super) fn tensor_count(&self) -> usize {
        self.tensors.len()
    }

    pub(super) fn tensor(&self, name: &str) -> Result<RawTensor<'a>> {
        let entry =
            self.tensors.get(name).ok_or_else(|| Error::Missing(format!("tensor {name}")))?;
        let corrupt = || Error::Corrupt(format!("tensor {name} of shape {:?}", entry.dims));
        let elements = entry.dims.iter().try_fold(1usize, |n, &dim| n.checked_mul(dim));
        let elements = elements.filter(|n| *n > 0).ok_or_else(corrupt)?;
        if !entry.dims.last().is_some_and(|row| row.is_multiple_of(entry.dtype.block_size())) {
            return Err(corrupt());
        }
        let bytes = (elements / entry.dtype.block_size())
            .checked_mul(entry.dtype.type_size())
            .and_then(|len| entry.offset.checked_add(len))
            .and_then(|end| self.data.get(entry.offset..end))
            .ok_or_else(|| Error::Truncated(format!("tensor {name}")))?;
        Ok(RawTensor { dims: entry.dims.clone(), dtype: entry.dtype, bytes })
    }
}

impl Value {
    pub(super) fn as_usize(&self) -> Option<usize> {
        match self {
            Self::Unsigned(value) => usize::try_from(*value).ok(),
            Self::Signed(value) => usize::try_from(*value).ok(),
            _ => None,
        }
    }

    pub(super) fn as_float(&self) -> Option<f64> {
        if let Self::Float(value) = self { Some(*value) } else { None }
    }

    pub(super) fn as_text(&self) -> Option<&str> {
        if let Self::Text(value) = self { Some(value) } else { None }
    }

    pub(super) fn as_list(&self) -> Option<&[Self]> {
        if let Self::List(values) = self { Some(values) } else { None }
    }
}

struct Reader<'a> {
    file: &'a [u8],
    at: usize,
}

impl<'a> Reader<'a> {
    fn take(&mut self, len: usize, what: &str) -> Result<&'a [u8]> {
        let bytes = self.at.checked_add(len).and_then(|end| self.file.get(self.at..end));
        let bytes = bytes.ok_or_else(|| Error::Truncated(what.to_owned()))?;
        self.at += len;
        Ok(bytes)
    }

    fn array<const N: usize>(&mut self, what: &str) -> Result<[u8; N]> {
        let mut array = [0; N];
        array.copy_from_slice(self.take(N, what)?);
        Ok(array)
    }

    fn u32(&mut self, what: &str) -> Result<u32> {
        Ok(u32::from_le_bytes(self.array(what)?))
    }

    fn u64(&mut self, what: &str) -> Result<u64> {
        Ok(u64::from_le_bytes(self.array(what)?))
    }

    /// Reads a number of things of at least `size_min` bytes each: the file must have room.
    fn count(&mut self, what: &str, size_min: usize) -> Result<usize> {
        let count = self.u64(what)?;
        let left = self.file.len() - self.at;
        match usize::try_from(count) {
            Ok(fits) if fits.checked_mul(size_min).is_some_and(|bytes| bytes <= left) => Ok(fits),
            _ => Err(Error::Corrupt(format!(
                "{what} of {count} in a file of {} bytes",
                self.file.len()
            ))),
        }
    }

    fn text(&mut self, what: &str) -> Result<String> {
        let len = self.count(what, 1)?;
        String::from_utf8(self.take(len, what)?.to_vec())
            .map_err(|_| Error::Corrupt(format!("{what} is not UTF-8")))
    }

    fn value(&mut self, key: &str, kind: u32, depth: usize) -> Result<Value> {
        Ok(match kind {
            0 => Value::Unsigned(u64::from(self.array::<1>(key)?[0])),
            1 => Value::Signed(i64::from(i8::from_le_bytes(self.array(key)?))),
            2 => Value::Unsigned(u64::from(u16::from_le_bytes(self.array(key)?))),
            3 => Value::Signed(i64::from(i16::from_le_bytes(self.array(key)?))),
            4 => Value::Unsigned(u64::from(self.u32(key)?)),
            5 => Value::Signed(i64::from(i32::from_le_bytes(self.array(key)?))),
            6 => Value::Float(f64::from(f32::from_le_bytes(self.array(key)?))),
            // A bool is a byte.
            7 => Value::Unsigned(u64::from(self.array::<1>(key)?[0])),
            8 => Value::Text(self.text(key)?),
            9 if depth < LIST_DEPTH_MAX => {
                let kind = self.u32(key)?;
                let count = self.count(key, 1)?;
                if count > LIST_ITEMS_MAX {
                    return Err(Error::Corrupt(format!("{key} has {count} items")));
                }
                let items = (0..count).map(|_| self.value(key, kind, depth + 1));
                Value::List(items.collect::<Result<_>>()?)
            }
            10 => Value::Unsigned(self.u64(key)?),
            11 => Value::Signed(i64::from_le_bytes(self.array(key)?)),
            12 => Value::Float(f64::from_le_bytes(self.array(key)?)),
            other => return Err(Error::Corrupt(format!("{key} has type {other}"))),
        })
    }

    fn tensor(&mut self) -> Result<(String, TensorEntry)> {
        let name = self.text("tensor name")?;
        let axes = self.u32(&name)?;
        if !(1..=4).contains(&axes) {
            return Err(Error::Corrupt(format!("tensor {name} has {axes} axes")));
        }
        let too_large = || Error::Corrupt(format!("tensor {name} is larger than memory"));
        let mut dims = Vec::new();
        for _ in 0..axes {
            dims.push(usize::try_from(self.u64(&name)?).map_err(|_| too_large())?);
        }
        // The file has the innermost axis first.
        dims.reverse();
        let dtype = dtype(self.u32(&name)?)
            .ok_or_else(|| Error::Unsupported(format!("type of tensor {name}")))?;
        let offset = usize::try_from(self.u64(&name)?).map_err(|_| too_large())?;
        Ok((name, TensorEntry { dims, dtype, offset }))
    }
}

/// The numbers of `enum ggml_type`.
fn dtype(number: u32) -> Option<GgmlDType> {
    Some(match number {
        0 => GgmlDType::F32,
        1 => GgmlDType::F16,
        2 => GgmlDType::Q4_0,
        3 => GgmlDType::Q4_1,
        6 => GgmlDType::Q5_0,
        7 => GgmlDType::Q5_1,
        8 => GgmlDType::Q8_0,
        10 => GgmlDType::Q2K,
        11 => GgmlDType::Q3K,
        12 => GgmlDType::Q4K,
        13 => GgmlDType::Q5K,
        14 => GgmlDType::Q6K,
        30 => GgmlDType::BF16,
        _ => return None,
    })
}

/// Name length, axes, one axis, type and offset.
const TENSOR_BYTES_MIN: usize = 8 + 4 + 8 + 4 + 8;
/// Key length, type and the smallest value.
const METADATA_BYTES_MIN: usize = 8 + 4 + 1;
/// Above any vocabulary: an item takes more memory than its byte in the file.
const LIST_ITEMS_MAX: usize = 1 << 22;
/// Lists of lists occur, deeper nesting does not.
const LIST_DEPTH_MAX: usize = 3;
