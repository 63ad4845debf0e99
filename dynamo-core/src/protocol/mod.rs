//! The words the crates share: tokens, block hashes, KV events, load, hand-off and generation.
//!
//! Nothing here does IO. The router and the block manager never see each other; these types are
//! all that passes between them.

mod generate;
mod handoff;
mod hash;
mod kv_event;
mod load;
mod snapshot;
mod token;
mod trace;
mod worker;
mod xxh3;

pub use generate::{
    FinishReason, GenerateChunk, GenerateRequest, HandoffReport, LoadedTokens, Sampling, Stage,
    Usage,
};
pub use handoff::HandoffTicket;
pub use hash::{BlockHasher, CacheNamespace, LocalHash, PromptBlocks, SequenceHash};
pub use kv_event::{KvChange, KvEvent, StoredBlock, Tier};
pub use load::LoadReport;
pub use snapshot::{KvCursor, SnapshotPage, SnapshotRequest};
pub use token::{BlockSize, TokenId};
pub use trace::TraceContext;
pub use worker::{InstanceId, WorkerId};
