//! The fields of an event, whatever their order and form; pure.

use dynamo_core::protocol::{BlockSize, Tier, TokenId};

use super::batch::{EngineHash, Group, Removed, Stored};
use super::pack::{Malformed, Reader, Value};

/// What was read of an event.
#[derive(Debug, Default)]
pub(super) struct Fields<'a> {
    hashes: Option<Vec<EngineHash>>,
    parent: Option<EngineHash>,
    tokens: Vec<TokenId>,
    block_size: Option<u32>,
    lora_id: Option<u32>,
    lora_name: Option<&'a str>,
    medium: Option<&'a str>,
    extra: Vec<(usize, Vec<Vec<u8>>)>,
    group: Option<u32>,
    kind: Option<&'a str>,
}

impl<'a> Fields<'a> {
    pub(super) fn read(&mut self, name: &str, reader: &mut Reader<'a>) -> Result<(), Malformed> {
        match name {
            "block_hashes" => self.hashes = list(reader, |reader, _| hash(reader))?,
            "parent_block_hash" => self.parent = optional_hash(reader)?,
            "token_ids" => {
                let token = |reader: &mut Reader<'a>, _| {
                    number(reader)?.ok_or_else(|| reader.wrong("no token"))
                };
                self.tokens = list(reader, token)?.unwrap_or_default();
            }
            "block_size" => self.block_size = number(reader)?,
            "lora_id" => self.lora_id = number(reader)?,
            "lora_name" => self.lora_name = optional_text(reader)?,
            "medium" => self.medium = optional_text(reader)?,
            "extra_keys" => {
                let keys = list(reader, |reader, place| Ok((place, keys(reader)?)))?;
                self.extra = keys.unwrap_or_default();
                self.extra.retain(|(_, keys)| !keys.is_empty());
            }
            "group_idx" => self.group = number(reader)?,
            "kv_cache_spec_kind" => self.kind = optional_text(reader)?,
            _ => reader.skip()?,
        }
        Ok(())
    }

    pub(super) fn stored(self, reader: &Reader<'_>) -> Result<Stored, Malformed> {
        let group = self.group();
        let adapter = match (self.lora_name, self.lora_id) {
            (Some(name), _) => name.to_owned(),
            (None, Some(id)) => id.to_string(),
            (None, None) => String::new(),
        };
        Ok(Stored {
            hashes: self.hashes.ok_or_else(|| reader.wrong("no block_hashes"))?,
            parent: self.parent,
            tokens: self.tokens,
            block_size: self
                .block_size
                .and_then(BlockSize::new)
                .ok_or_else(|| reader.wrong("no block_size above zero"))?,
            adapter,
            tier: tier(self.medium),
            extra: self.extra,
            group,
        })
    }

    pub(super) fn removed(self, reader: &Reader<'_>) -> Result<Removed, Malformed> {
        let (group, tier) = (self.group(), tier(self.medium));
        let hashes = self.hashes.ok_or_else(|| reader.wrong("no block_hashes"))?;
        Ok(Removed { hashes, tier, group })
    }

    fn group(&self) -> Group {
        let is_windowed = self.kind.is_some_and(|kind| WINDOWED.iter().any(|w| kind.contains(w)));
        Group { index: self.group, is_windowed }
    }
}

/// Returns where blocks live that are in `medium`; unsaid, it is the accelerator.
fn tier(medium: Option<&str>) -> Tier {
    let Some(medium) = medium else { return Tier::Device };
    let starts = |words: &[&str]| {
        words.iter().any(|word| {
            medium.get(..word.len()).is_some_and(|start| start.eq_ignore_ascii_case(word))
        })
    };
    if starts(&["GPU", "HBM"]) {
        Tier::Device
    } else if starts(&["CPU", "DRAM"]) {
        Tier::Host
    } else if starts(&["DISK", "STORAGE", "FS", "SSD", "NVME"]) {
        Tier::Disk
    } else {
        Tier::Remote
    }
}

/// Reads an array, or nil.
fn list<'a, T>(
    reader: &mut Reader<'a>,
    mut element: impl FnMut(&mut Reader<'a>, usize) -> Result<T, Malformed>,
) -> Result<Option<Vec<T>>, Malformed> {
    match reader.value()? {
        Value::Nil => Ok(None),
        Value::Array(len) => {
            (0..len).map(|place| element(reader, place)).collect::<Result<_, _>>().map(Some)
        }
        _ => Err(reader.wrong("no array")),
    }
}

/// Reads a block's extra keys: text and bytes as they are, all else as it was packed.
fn keys(reader: &mut Reader<'_>) -> Result<Vec<Vec<u8>>, Malformed> {
    let key = |reader: &mut Reader<'_>, _| {
        let raw = reader.raw()?;
        Ok(match Reader::new(raw).value()? {
            Value::Text(bytes) | Value::Binary(bytes) => bytes.to_vec(),
            _ => raw.to_vec(),
        })
    };
    Ok(list(reader, key)?.unwrap_or_default())
}

fn hash(reader: &mut Reader<'_>) -> Result<EngineHash, Malformed> {
    optional_hash(reader)?.ok_or_else(|| reader.wrong("no block hash"))
}

/// Reads a hash: a number is as good as the bytes that end in it.
fn optional_hash(reader: &mut Reader<'_>) -> Result<Option<EngineHash>, Malformed> {
    let hash = match reader.value()? {
        Value::Nil => return Ok(None),
        Value::Unsigned(hash) => hash,
        Value::Negative(hash) => hash.cast_unsigned(),
        Value::Binary(bytes) if !bytes.is_empty() => {
            bytes.iter().fold(0, |hash, byte| hash << 8 | u64::from(*byte))
        }
        _ => return Err(reader.wrong("a block hash is a number or bytes")),
    };
    Ok(Some(EngineHash(hash)))
}

pub(super) fn number(reader: &mut Reader<'_>) -> Result<Option<u32>, Malformed> {
    match reader.value()? {
        Value::Nil => Ok(None),
        Value::Unsigned(number) => {
            u32::try_from(number).map(Some).map_err(|_| reader.wrong("a number beyond 32 bits"))
        }
        _ => Err(reader.wrong("no number from 0 on")),
    }
}

pub(super) fn text<'a>(reader: &mut Reader<'a>) -> Result<&'a str, Malformed> {
    optional_text(reader)?.ok_or_else(|| reader.wrong("no text"))
}

fn optional_text<'a>(reader: &mut Reader<'a>) -> Result<Option<&'a str>, Malformed> {
    match reader.value()? {
        Value::Nil => Ok(None),
        Value::Text(bytes) => {
            str::from_utf8(bytes).map(Some).map_err(|_| reader.wrong("text that is not UTF-8"))
        }
        _ => Err(reader.wrong("no text")),
    }
}

/// Words in the kinds of layers that do not read the whole prefix.
const WINDOWED: &[&str] = &["sliding", "local", "mamba", "cross", "encoder"];
