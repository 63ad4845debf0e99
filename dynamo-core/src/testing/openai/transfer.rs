use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use serde_json::{Value, json};

use crate::protocol::{BlockSize, TokenId};

/// Lets played servers pull blocks from each other, as vLLM's `NixlConnector` does; clones are of
/// one network.
///
/// A server that is asked to prefill for another one (`do_remote_decode`) keeps the prompt's blocks
/// until that one has pulled them or their time is over, and says in an answer that is not streamed
/// where they are. One that is asked to decode by that pulls them; if whoever kept them is gone its stream
/// tells an error, and if their time was over it goes on from what lies there, without a word.
#[derive(Debug, Clone, Default)]
pub struct Connector(Arc<Mutex<Network>>);

#[derive(Debug, Default)]
struct Network {
    started: u64,
    /// The requests that each server that lives keeps blocks of.
    kept: BTreeMap<String, Vec<String>>,
}

/// One server's place in the network, until it is dropped.
#[derive(Debug)]
pub(super) struct Side {
    connector: Connector,
    engine: String,
}

/// What became of a pull.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Pull {
    /// The blocks of the prompt are here.
    Done,
    /// Blocks of something else are here.
    Stale,
    /// Nobody is there who had them.
    Failed,
}

impl Connector {
    pub(super) fn join(&self) -> Side {
        let mut network = self.network();
        network.started += 1;
        let engine = format!("engine-{}", network.started);
        network.kept.insert(engine.clone(), Vec::new());
        drop(network);
        Side { connector: self.clone(), engine }
    }

    fn network(&self) -> MutexGuard<'_, Network> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Side {
    /// Keeps the blocks of a prompt for another server, and returns where they are.
    pub(super) fn keep(&self, request: &str, prompt: &[TokenId], block_size: BlockSize) -> Value {
        if let Some(kept) = self.connector.network().kept.get_mut(&self.engine) {
            kept.push(request.to_owned());
        }
        let blocks: Vec<_> = (1..=block_size.blocks_for(prompt.len())).collect();
        json!({
            "do_remote_prefill": true,
            "do_remote_decode": false,
            "remote_block_ids": [blocks],
            "remote_engine_id": self.engine,
            "remote_request_id": request,
            "remote_host": "127.0.0.1",
            "remote_port": 5600,
            "tp_size": 1,
            "remote_num_tokens": prompt.len(),
            "transfer_mode": "pull",
        })
    }

    /// Pulls the blocks that `params` lead to, after which nobody keeps them.
    pub(super) fn pull(&self, params: &Value) -> Pull {
        let text = |name: &str| params[name].as_str().unwrap_or_default();
        let mut network = self.connector.network();
        let Some(kept) = network.kept.get_mut(text("remote_engine_id")) else {
            return Pull::Failed;
        };
        match kept.iter().position(|its| its == text("remote_request_id")) {
            Some(place) => {
                kept.remove(place);
                Pull::Done
            }
            None => Pull::Stale,
        }
    }

    /// Returns of how many requests the server keeps blocks.
    pub(super) fn kept(&self) -> usize {
        self.connector.network().kept.get(&self.engine).map_or(0, Vec::len)
    }

    /// Ends the time of all that the server keeps.
    pub(super) fn expire(&self) {
        if let Some(kept) = self.connector.network().kept.get_mut(&self.engine) {
            kept.clear();
        }
    }

    /// Leaves the network, as a server that dies.
    pub(super) fn leave(&self) {
        self.connector.network().kept.remove(&self.engine);
    }
}

impl Drop for Side {
    fn drop(&mut self) {
        self.leave();
    }
}
