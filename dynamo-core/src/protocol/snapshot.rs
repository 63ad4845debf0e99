use super::kv_event::KvChange;
use super::worker::WorkerId;

/// How much of what a worker publishes is known: all events of one epoch before one number.
///
/// A larger cursor knows more: whoever has heard of a larger epoch knows that the smaller is over.
#[derive(
    Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, serde::Serialize, serde::Deserialize,
)]
pub struct KvCursor {
    /// The life of the publisher.
    pub epoch: u64,
    /// The number of the first event that is not known.
    pub next: u64,
}

/// Asks a worker for everything its caches hold, because events of its were lost.
///
/// The answer is a stream of [`SnapshotPage`]s, at least one; only one that is complete counts.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct SnapshotRequest {
    /// Whose caches.
    pub worker: WorkerId,
    /// What the asker knows, without a hole. If nothing has been published since, one page without
    /// blocks answers.
    pub known: Option<KvCursor>,
}

/// A part of what a worker's caches hold at one moment.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct SnapshotPage {
    /// Whose caches.
    pub worker: WorkerId,
    /// The moment: the snapshot stands for all events before; the same in all its pages.
    pub cursor: KvCursor,
    /// Blocks as [`KvChange::BlockStored`], in each tier that has them, parents before what follows
    /// them.
    pub stored: Vec<KvChange>,
}
