//! Workloads of Mooncake's trace of an hour of conversations (FAST'25).

use std::path::Path;
use std::rc::Rc;

use anyhow::{Context as _, Result, ensure};
use dynamo_core::protocol::SequenceHash;
use serde::Deserialize;

use crate::lru::Cache;
use crate::workload::{Change, Event, Prompt, Workload, local};

/// The requests of a trace, in the order of time.
pub struct Trace(Vec<Request>);

#[derive(Deserialize)]
struct Request {
    /// Tokens.
    input_length: usize,
    /// The blocks of 512 tokens, the last one in part full.
    hash_ids: Vec<u64>,
}

impl Trace {
    pub fn read(path: &Path) -> Result<Self> {
        let text = std::fs::read_to_string(path).with_context(|| path.display().to_string())?;
        let requests = text.lines().map(serde_json::from_str).collect::<Result<Vec<_>, _>>();
        let requests: Vec<Request> = requests.with_context(|| path.display().to_string())?;
        for request in &requests {
            let blocks = request.input_length.div_ceil(TRACE_BLOCK);
            ensure!(blocks <= request.hash_ids.len(), "{}: blocks are missing", path.display());
        }
        Ok(Self(requests))
    }

    /// Cuts the prompts into blocks of `block_size` tokens, a divisor of 512; only full ones count.
    pub fn prompts(&self, block_size: usize) -> Rc<Vec<Prompt>> {
        let parts = TRACE_BLOCK / block_size;
        let prompt = |request: &Request| {
            let part =
                |at: usize| request.hash_ids[at / parts] * parts as u64 + (at % parts) as u64;
            Prompt::new((0..request.input_length / block_size).map(part).map(local).collect())
        };
        Rc::new(self.0.iter().map(prompt).collect())
    }
}

/// Request i goes to worker i modulo `workers`, which stores what it lacks and never evicts.
pub fn growing(prompts: &Rc<Vec<Prompt>>, workers: usize) -> Workload {
    let mut held: Vec<_> = (0..workers).map(|_| Cache::default()).collect();
    let mut events = Vec::new();
    for (number, prompt) in prompts.iter().enumerate() {
        let worker = number % workers;
        let held = &mut held[worker];
        // What a worker holds of a prompt is a prefix of it.
        let from = prompt.sequence.partition_point(|hash| held.contains(*hash));
        if from < prompt.len() {
            held.touch(&prompt.sequence[from..]);
            let change = Change::Stored { prompt: number, from, to: prompt.len() };
            events.push(Event { worker, change });
        }
    }
    finish(prompts, events, Vec::new())
}

/// The same until all workers together hold `pairs` blocks.
pub fn held(prompts: &Rc<Vec<Prompt>>, workers: usize, pairs: usize) -> Workload {
    let mut workload = growing(prompts, workers);
    let stored = workload.events.iter().scan(0, |stored, event| {
        *stored += Workload::blocks(std::slice::from_ref(event));
        Some(*stored)
    });
    let events = stored.take_while(|stored| *stored <= pairs).count();
    workload.events.truncate(events);
    workload.pairs = Workload::blocks(&workload.events);
    workload
}

/// The same with caches of `blocks` blocks a worker: what was used longest ago makes room, leaves
/// first.
pub fn churning(prompts: &Rc<Vec<Prompt>>, workers: usize, blocks: usize) -> Workload {
    let mut caches: Vec<_> = (0..workers).map(|_| Cache::default()).collect();
    let (mut events, mut removed) = (Vec::new(), Vec::new());
    for (number, prompt) in prompts.iter().enumerate() {
        let worker = number % workers;
        let cache = &mut caches[worker];
        let from = prompt.sequence.partition_point(|hash| cache.contains(*hash));
        let first = removed.len();
        cache.touch(&prompt.sequence);
        while cache.len() > blocks {
            removed.extend(cache.evict());
        }
        if first < removed.len() {
            let change = Change::Removed { from: first, to: removed.len() };
            events.push(Event { worker, change });
        }
        if from < prompt.len() {
            let change = Change::Stored { prompt: number, from, to: prompt.len() };
            events.push(Event { worker, change });
        }
    }
    finish(prompts, events, removed)
}

fn finish(prompts: &Rc<Vec<Prompt>>, events: Vec<Event>, removed: Vec<SequenceHash>) -> Workload {
    let pairs = Workload::blocks(&events) - 2 * removed.len();
    let queries = (0..prompts.len()).collect();
    Workload { prompts: Rc::clone(prompts), events, removed, queries, pairs }
}

const TRACE_BLOCK: usize = 512;
