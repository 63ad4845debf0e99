//! Packs events as engines do, by an encoder that is not ours.

use rmp::encode::{
    write_array_len, write_bin, write_f64, write_map_len, write_nil, write_sint, write_str,
    write_uint,
};

use crate::events::vllm::batch::EngineHash;

/// An event as an engine tells it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Told {
    Stored {
        hashes: Vec<EngineHash>,
        parent: Option<EngineHash>,
        tokens: Vec<u32>,
        block_size: u32,
        adapter: Option<&'static str>,
        medium: &'static str,
        keys: Vec<Vec<&'static str>>,
    },
    Removed {
        hashes: Vec<EngineHash>,
        medium: &'static str,
    },
    Cleared,
    Other,
}

/// How an engine packs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Form {
    pub(super) is_map: bool,
    pub(super) hash: Hash,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Hash {
    Unsigned,
    Signed,
    Bytes,
}

/// What vLLM sends by default.
pub(super) const FORM: Form = Form { is_map: true, hash: Hash::Unsigned };

/// Packs a message's payload.
pub(super) fn pack(form: Form, rank: Option<u32>, events: &[Told]) -> Vec<u8> {
    let mut out = Vec::new();
    write_array_len(&mut out, if rank.is_some() { 3 } else { 2 }).unwrap();
    write_f64(&mut out, 1.5).unwrap();
    write_array_len(&mut out, u32::try_from(events.len()).unwrap()).unwrap();
    events.iter().for_each(|event| pack_event(&mut out, form, event));
    rank.iter().for_each(|rank| number(&mut out, u64::from(*rank)));
    out
}

fn pack_event(out: &mut Vec<u8>, form: Form, event: &Told) {
    let name = match event {
        Told::Stored { .. } => "BlockStored",
        Told::Removed { .. } => "BlockRemoved",
        Told::Cleared => "AllBlocksCleared",
        Told::Other => "BlockMigrated",
    };
    let mut fields: Vec<(&str, Vec<u8>)> = Vec::new();
    let mut field = |name, write: &dyn Fn(&mut Vec<u8>)| {
        let mut value = Vec::new();
        write(&mut value);
        fields.push((name, value));
    };
    match event {
        Told::Stored { hashes, parent, tokens, block_size, adapter, medium, keys } => {
            field("block_hashes", &|out| pack_hashes(out, form.hash, hashes));
            field("parent_block_hash", &|out| match parent {
                Some(parent) => pack_hash(out, form.hash, *parent),
                None => write_nil(out).unwrap(),
            });
            field("token_ids", &|out| {
                write_array_len(out, u32::try_from(tokens.len()).unwrap()).unwrap();
                tokens.iter().for_each(|token| number(out, u64::from(*token)));
            });
            field("block_size", &|out| number(out, u64::from(*block_size)));
            field("lora_id", &|out| write_nil(out).unwrap());
            field("medium", &|out| write_str(out, medium).unwrap());
            field("lora_name", &|out| match adapter {
                Some(adapter) => write_str(out, adapter).unwrap(),
                None => write_nil(out).unwrap(),
            });
            field("extra_keys", &|out| {
                write_array_len(out, u32::try_from(keys.len()).unwrap()).unwrap();
                for keys in keys {
                    write_array_len(out, u32::try_from(keys.len()).unwrap()).unwrap();
                    keys.iter().for_each(|key| write_str(out, key).unwrap());
                }
            });
        }
        Told::Removed { hashes, medium } => {
            field("block_hashes", &|out| pack_hashes(out, form.hash, hashes));
            field("medium", &|out| write_str(out, medium).unwrap());
        }
        Told::Cleared => {}
        Told::Other => field("block_hashes", &|out| write_str(out, "no list").unwrap()),
    }
    let len = u32::try_from(fields.len()).unwrap();
    if form.is_map {
        write_map_len(out, len + 2).unwrap();
        write_str(out, "type").unwrap();
    } else {
        write_array_len(out, len + 1).unwrap();
    }
    write_str(out, name).unwrap();
    for (name, value) in fields {
        if form.is_map {
            write_str(out, name).unwrap();
        }
        out.extend_from_slice(&value);
    }
    if form.is_map {
        // Of a version to come.
        write_str(out, "novelty").unwrap();
        write_array_len(out, 1).unwrap();
        write_map_len(out, 0).unwrap();
    }
}

fn pack_hashes(out: &mut Vec<u8>, form: Hash, hashes: &[EngineHash]) {
    write_array_len(out, u32::try_from(hashes.len()).unwrap()).unwrap();
    hashes.iter().for_each(|hash| pack_hash(out, form, *hash));
}

fn pack_hash(out: &mut Vec<u8>, form: Hash, hash: EngineHash) {
    match form {
        Hash::Unsigned => number(out, hash.0),
        Hash::Signed => drop(write_sint(out, hash.0.cast_signed()).unwrap()),
        Hash::Bytes => {
            let bytes = [&[0xab; 24][..], &hash.0.to_be_bytes()].concat();
            write_bin(out, &bytes).unwrap();
        }
    }
}

fn number(out: &mut Vec<u8>, number: u64) {
    write_uint(out, number).unwrap();
}
