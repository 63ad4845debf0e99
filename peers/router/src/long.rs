//! Workloads of prompts of 8192 blocks, stored in events of 512: 128 k tokens in blocks of 16.

use std::rc::Rc;

use crate::workload::{Change, Event, Prompt, Workload, local};

/// All workers hold all of one prompt.
pub fn shared(workers: usize) -> Workload {
    let held = (0..workers).map(|worker| (worker, 0, BLOCKS));
    workload(vec![prompt(0..BLOCKS)], held)
}

/// Each worker holds more of one prompt than the one before, the last one all of it.
pub fn staggered(workers: usize) -> Workload {
    let held = (0..workers).map(|worker| (worker, 0, BLOCKS * (worker + 1) / workers));
    workload(vec![prompt(0..BLOCKS)], held)
}

/// Each worker holds a prompt whose first half all have in common.
pub fn fan_out(workers: usize) -> Workload {
    let prompts = (0..workers).map(|worker| {
        let own = BLOCKS * (worker + 1);
        prompt((0..BLOCKS / 2).chain(own..own + BLOCKS / 2))
    });
    let held = (0..workers).map(|worker| (worker, worker, BLOCKS));
    workload(prompts.collect(), held)
}

fn prompt(numbers: impl Iterator<Item = usize>) -> Prompt {
    Prompt::new(numbers.map(|number| local(number as u64)).collect())
}

/// Worker after worker stores so many blocks of a prompt.
fn workload(prompts: Vec<Prompt>, held: impl Iterator<Item = (usize, usize, usize)>) -> Workload {
    let events: Vec<_> = held
        .flat_map(|(worker, prompt, blocks)| {
            (0..blocks).step_by(EVENT_BLOCKS).map(move |from| {
                let to = (from + EVENT_BLOCKS).min(blocks);
                Event { worker, change: Change::Stored { prompt, from, to } }
            })
        })
        .collect();
    let pairs = Workload::blocks(&events);
    let queries = (0..QUERIES).map(|query| query % prompts.len()).collect();
    Workload { prompts: Rc::new(prompts), events, removed: Vec::new(), queries, pairs }
}

const BLOCKS: usize = 8192;
const EVENT_BLOCKS: usize = 512;
const QUERIES: usize = 1024;
