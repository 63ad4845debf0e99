use super::io::FileAct;
use super::plan::FileChunk;
use super::region::FileRegion;
use super::store::FileStore;
use crate::error::Result;
use crate::memory::{Keep, Piece, Right};

/// A file that an agent has registered, and who reaches it.
pub(crate) struct FileMemory {
    file: FileRegion,
    store: FileStore,
}

impl FileMemory {
    pub(crate) fn new(store: &FileStore, file: &FileRegion) -> Self {
        Self { file: file.clone(), store: store.clone() }
    }

    pub(crate) fn len(&self) -> u64 {
        self.file.len()
    }

    /// Fills pieces of memory from the file, or writes them there, as one operation of the store;
    /// dropping the future cancels it.
    ///
    /// `keep` keeps the pieces alive; see [`Far::pass`](crate::memory::Far::pass).
    pub(crate) async fn pass(&self, right: Right, pieces: Vec<Piece>, keep: Keep) -> Result<()> {
        let act = match right {
            Right::Read => FileAct::Read,
            Right::Write => FileAct::Write,
        };
        let chunks = pieces.into_iter().map(|Piece { offset, span }| FileChunk { offset, span });
        self.store.post(&self.file, act, chunks, keep)?.await.map(drop)
    }
}
