//! Requests as the blocks of their prompts.

use std::collections::HashMap;
use std::fs::File;
use std::io::{BufRead as _, BufReader};
use std::path::Path;

use anyhow::{Context as _, Result, ensure};
use serde_json::Value;

/// A block, numbered in the order of first use.
pub(crate) type Name = usize;

/// What was asked for, in the order of time.
#[derive(Default)]
pub(crate) struct Trace {
    /// The blocks of each prompt, first block first.
    pub(crate) requests: Vec<Vec<Name>>,
    /// The block before each one, and how many are before it.
    pub(crate) places: Vec<(Option<Name>, u32)>,
}

impl Trace {
    /// Reads Mooncake's format: a JSON object a line, with `timestamp` in milliseconds and `hash_ids`,
    /// one for each 512 tokens of the prompt, that stand for the block *and* all before it.
    pub(crate) fn read(path: &Path) -> Result<Self> {
        let mut requests = Vec::new();
        for (line, text) in BufReader::new(File::open(path)?).lines().enumerate() {
            let request: Value = serde_json::from_str(&text?)?;
            let ids = request["hash_ids"].as_array().context("no hash_ids");
            let ids =
                ids.and_then(|ids| ids.iter().map(|id| id.as_u64().context("no id")).collect());
            let ids: Vec<u64> = ids.with_context(|| format!("line {}", line + 1))?;
            requests.push((request["timestamp"].as_u64().context("no timestamp")?, ids));
        }
        requests.sort_by_key(|(time, _)| *time);
        Self::of(requests.iter().map(|(_, ids)| &ids[..]))
    }

    /// Takes prompts whose ids stand for the block and all before it.
    pub(crate) fn of<'a>(prompts: impl Iterator<Item = &'a [u64]>) -> Result<Self> {
        let (mut trace, mut names) = (Self::default(), HashMap::new());
        for ids in prompts {
            let mut request: Vec<Name> = Vec::with_capacity(ids.len());
            for id in ids {
                let place = (request.last().copied(), u32::try_from(request.len())?);
                let name = *names.entry(*id).or_insert(trace.places.len());
                if name == trace.places.len() {
                    trace.places.push(place);
                }
                ensure!(trace.places[name] == place, "block {id} follows different blocks");
                request.push(name);
            }
            trace.requests.push(request);
        }
        Ok(trace)
    }

    /// Returns how many different blocks there are.
    pub(crate) fn unique(&self) -> usize {
        self.places.len()
    }
}
