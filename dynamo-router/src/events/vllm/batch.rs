//! One message of a publisher, decoded; pure.

use dynamo_core::protocol::{BlockSize, Tier, TokenId};

use super::fields::{Fields, number, text};
use super::pack::{Malformed, Reader, Value};

/// What a message says: events in order, of one data-parallel rank.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Batch {
    /// Whose cache changed, if the message says so.
    pub rank: Option<u32>,
    /// What happened.
    pub events: Vec<Event>,
}

/// What happened to an engine's cache.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum Event {
    /// A run of blocks became readable.
    BlockStored(Stored),
    /// Blocks are no longer readable.
    BlockRemoved(Removed),
    /// The cache is empty.
    AllBlocksCleared,
    /// An event of this name, of which nothing is known.
    Unknown(String),
}

/// By what an engine knows a block: the last 64 bits of whatever hash it uses.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct EngineHash(pub u64);

/// A run of blocks; the first one follows `parent`, each other its predecessor.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Stored {
    /// The blocks, in sequence order.
    pub hashes: Vec<EngineHash>,
    /// The block before the run; `None` when the run starts a sequence.
    pub parent: Option<EngineHash>,
    /// The tokens of all blocks; empty where an engine moves blocks that it has told of already.
    pub tokens: Vec<TokenId>,
    /// How many tokens one of these blocks holds.
    pub block_size: BlockSize,
    /// The adapter (LoRA) in use; empty means none.
    pub adapter: String,
    /// Where the blocks live.
    pub tier: Tier,
    /// What else the KV of a block depends on: the block's place in the run, and its keys.
    pub extra: Vec<(usize, Vec<Vec<u8>>)>,
    /// The layers that these are the blocks of, where layers attend differently.
    pub group: Group,
}

/// Blocks, in no particular order.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Removed {
    /// The blocks.
    pub hashes: Vec<EngineHash>,
    /// Where they lived.
    pub tier: Tier,
    /// The layers that these were the blocks of.
    pub group: Group,
}

/// Layers that attend alike.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Group {
    /// Their number, where the engine has more than one group or says it all the same.
    pub index: Option<u32>,
    /// Whether they read less than the whole prefix, so that their blocks say nothing of it.
    pub is_windowed: bool,
}

impl Batch {
    /// Decodes the payload of a message.
    ///
    /// Fields that are not known are passed over; what is missing at the end has its default.
    pub fn decode(payload: &[u8]) -> Result<Self, Malformed> {
        let mut reader = Reader::new(payload);
        let mut batch = Self { rank: None, events: Vec::new() };
        match reader.value()? {
            Value::Array(len) => {
                for place in 0..len {
                    batch.read(BATCH.get(place).copied().unwrap_or_default(), &mut reader)?;
                }
            }
            Value::Map(len) => {
                for _ in 0..len {
                    let name = text(&mut reader)?;
                    batch.read(name, &mut reader)?;
                }
            }
            _ => return Err(reader.wrong("a batch is an array or a map")),
        }
        reader.end()?;
        Ok(batch)
    }

    fn read(&mut self, name: &str, reader: &mut Reader<'_>) -> Result<(), Malformed> {
        match name {
            "events" => {
                let Value::Array(len) = reader.value()? else {
                    return Err(reader.wrong("events are an array"));
                };
                for _ in 0..len {
                    self.events.push(event(reader)?);
                }
                Ok(())
            }
            "data_parallel_rank" => {
                self.rank = number(reader)?;
                Ok(())
            }
            _ => reader.skip(),
        }
    }
}

fn event(reader: &mut Reader<'_>) -> Result<Event, Malformed> {
    let mut fields = Fields::default();
    let name = match reader.value()? {
        Value::Array(len) => {
            if len == 0 {
                return Err(reader.wrong("an event without a name"));
            }
            let name = text(reader)?;
            let places: &[&str] = match name {
                "BlockStored" => STORED,
                "BlockRemoved" => REMOVED,
                _ => &[],
            };
            for place in 0..len - 1 {
                fields.read(places.get(place).copied().unwrap_or_default(), reader)?;
            }
            name
        }
        Value::Map(len) => {
            let name = tag(reader.clone(), len)?;
            let is_known = matches!(name, "BlockStored" | "BlockRemoved");
            for _ in 0..len {
                let field = text(reader)?;
                fields.read(if is_known { field } else { "" }, reader)?;
            }
            name
        }
        _ => return Err(reader.wrong("an event is an array or a map")),
    };
    match name {
        "BlockStored" => fields.stored(reader).map(Event::BlockStored),
        "BlockRemoved" => fields.removed(reader).map(Event::BlockRemoved),
        "AllBlocksCleared" => Ok(Event::AllBlocksCleared),
        other => Ok(Event::Unknown(other.chars().take(NAME_MAX).collect())),
    }
}

/// Returns what a map of `len` pairs says under `type`.
fn tag<'a>(mut reader: Reader<'a>, len: usize) -> Result<&'a str, Malformed> {
    for _ in 0..len {
        if text(&mut reader)? == "type" {
            return text(&mut reader);
        }
        reader.skip()?;
    }
    Err(reader.wrong("an event without a type"))
}

/// What stands where in a batch that is an array.
const BATCH: &[&str] = &["ts", "events", "data_parallel_rank"];

/// What stands where in a `BlockStored` that is an array, behind its name.
const STORED: &[&str] = &[
    "block_hashes",
    "parent_block_hash",
    "token_ids",
    "block_size",
    "lora_id",
    "medium",
    "lora_name",
    "extra_keys",
    "group_idx",
    "kv_cache_spec_kind",
];

/// Likewise of a `BlockRemoved`.
const REMOVED: &[&str] = &["block_hashes", "medium", "group_idx"];

/// Characters that are kept of a name that is not known.
const NAME_MAX: usize = 64;
