use std::collections::{HashMap, VecDeque};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};

use super::error::{CANCELLED, CLOSED};
use super::io::{Engine, FileAct, Io};
use super::sys;
use super::threads::Threads;
use crate::error::Result;

/// Reads and writes on a few threads, each of which waits for one IO at a time.
///
/// A file is written through the page cache by one thread at a time: the kernel has the others wait for
/// each other, and spin while they do. Files take turns.
pub(super) struct Pool {
    queue: Mutex<Queue>,
    filled: Condvar,
    threads: usize,
}

#[derive(Default)]
struct Queue {
    turns: VecDeque<Turn>,
    /// What is to be written of each file that has its turn, or a thread.
    writes: HashMap<FileKey, VecDeque<Io>>,
    /// Threads that wait for work.
    idle: usize,
    is_closing: bool,
}

enum Turn {
    Io(Io),
    /// The next writes of a file.
    Writes(FileKey),
}

/// Where an open file is in memory.
type FileKey = usize;

/// What a thread does next.
struct Taken {
    ios: Vec<Io>,
    writes_of: Option<FileKey>,
    is_closing: bool,
}

impl Pool {
    pub(super) fn start(count: usize, threads: &Threads) -> Result<Arc<Self>> {
        let pool =
            Arc::new(Self { queue: Mutex::default(), filled: Condvar::new(), threads: count });
        for _ in 0..count {
            let worker = Arc::clone(&pool);
            threads.spawn(move || worker.work()).inspect_err(|_| pool.close())?;
        }
        Ok(pool)
    }

    fn work(&self) {
        let mut iovecs = Vec::new();
        while let Some(taken) = self.take() {
            for io in taken.ios {
                if taken.is_closing {
                    io.refuse(CLOSED);
                } else if io.is_cancelled() {
                    io.refuse(CANCELLED);
                } else {
                    let result = sys::run(&io, &mut iovecs);
                    io.finish(result);
                }
            }
            if let Some(file) = taken.writes_of {
                let mut queue = self.lock();
                queue.written(file);
                // This thread takes one of them.
                if queue.turns.len() > 1 && queue.idle > 0 {
                    self.filled.notify_one();
                }
            }
        }
    }

    /// Waits for IOs; `None` when there will be no more.
    fn take(&self) -> Option<Taken> {
        let mut queue = self.lock();
        while queue.turns.is_empty() {
            if queue.is_closing {
                return None;
            }
            queue.idle += 1;
            queue = self.filled.wait(queue).unwrap_or_else(PoisonError::into_inner);
            queue.idle -= 1;
        }
        Some(queue.take(self.threads))
    }

    fn lock(&self) -> MutexGuard<'_, Queue> {
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Queue {
    /// Queues an IO; returns whether that is a further turn.
    fn push(&mut self, io: Io) -> bool {
        if io.act != FileAct::Write || io.direct {
            self.turns.push_back(Turn::Io(io));
            return true;
        }
        let file = Arc::as_ptr(&io.operation.file).addr();
        if let Some(writes) = self.writes.get_mut(&file) {
            writes.push_back(io);
            return false;
        }
        self.writes.insert(file, VecDeque::from([io]));
        self.turns.push_back(Turn::Writes(file));
        true
    }

    /// Takes some writes of a file, or IOs: short ones that only copy together, a fair share of what
    /// waits.
    fn take(&mut self, threads: usize) -> Taken {
        let (share, is_closing) = (self.turns.len().div_ceil(threads), self.is_closing);
        if let Some(&Turn::Writes(file)) = self.turns.front() {
            self.turns.pop_front();
            let ios = self.writes.get_mut(&file).map(some).unwrap_or_default();
            return Taken { ios, writes_of: Some(file), is_closing };
        }
        let (mut ios, mut len) = (Vec::new(), 0);
        while ios.len() < share && len < TOGETHER_BYTES {
            match self.turns.pop_front() {
                Some(Turn::Io(io)) => {
                    len += if io.direct { TOGETHER_BYTES } else { io.size };
                    ios.push(io);
                }
                Some(writes) => {
                    self.turns.push_front(writes);
                    break;
                }
                None => break,
            }
        }
        Taken { ios, writes_of: None, is_closing }
    }

    /// Gives a file its next turn, if there is more to write.
    fn written(&mut self, file: FileKey) {
        if self.writes.get(&file).is_some_and(|writes| !writes.is_empty()) {
            self.turns.push_back(Turn::Writes(file));
        } else {
            self.writes.remove(&file);
        }
    }
}

/// Takes what is written in one turn.
fn some(writes: &mut VecDeque<Io>) -> Vec<Io> {
    let (mut ios, mut len) = (Vec::new(), 0);
    while len < TURN_BYTES
        && let Some(io) = writes.pop_front()
    {
        len += io.size;
        ios.push(io);
    }
    ios
}

impl Engine for Pool {
    fn submit(&self, batch: Vec<Io>) {
        let mut queue = self.lock();
        if queue.is_closing {
            drop(queue);
            return batch.into_iter().for_each(|io| io.refuse(CLOSED));
        }
        let mut turns = 0;
        for io in batch {
            turns += usize::from(queue.push(io));
        }
        let wanted = turns.min(queue.idle);
        drop(queue);
        (0..wanted).for_each(|_| self.filled.notify_one());
    }

    fn close(&self) {
        self.lock().is_closing = true;
        self.filled.notify_all();
    }
}

/// About as long as waking another thread takes to copy.
const TOGETHER_BYTES: usize = 64 << 10;

/// What is written of a file before others have their turn.
const TURN_BYTES: usize = 1 << 20;

#[cfg(test)]
mod tests {
    use tokio::sync::Semaphore;

    use super::*;
    use crate::backend::file::operation::{FileOperation, Kept, Operation};
    use crate::backend::file::plan::{self, FileChunk};
    use crate::backend::file::tests::Scratch;
    use crate::backend::file::{FileOptions, FileRegion};
    use crate::memory::Span;

    /// Keeps what is submitted.
    #[derive(Default)]
    struct Submitted(Mutex<Vec<Io>>);

    impl Engine for Submitted {
        fn submit(&self, batch: Vec<Io>) {
            self.0.lock().unwrap().extend(batch);
        }

        fn close(&self) {}
    }

    /// Posts blocks of 512 KiB, apart from each other.
    fn post(
        file: &FileRegion,
        act: FileAct,
        blocks: u64,
        memory: &[u8],
    ) -> (FileOperation, Vec<Io>) {
        let span = Span::of(memory);
        let chunks = (0..blocks).map(|index| FileChunk { offset: index << 20, span });
        let steps = plan::steps(chunks, file.0.alignment(), act == FileAct::Write).unwrap();
        let permit = Arc::new(Semaphore::new(1)).try_acquire_owned().unwrap();
        let submitted = Arc::new(Submitted::default());
        let engine = Arc::<Submitted>::clone(&submitted) as Arc<dyn Engine>;
        let kept = Kept { lease: Box::new(()), permit };
        let operation = Operation::post(&engine, &file.0, act, steps, kept);
        let ios = std::mem::take(&mut *submitted.0.lock().unwrap());
        (operation, ios)
    }

    #[test]
    fn a_file_is_written_by_one_thread_at_a_time_and_files_take_turns() {
        let memory = vec![1; 512 << 10];
        let scratch = [Scratch::new(), Scratch::new()];
        // Wherever the allocator has put the memory: what is aligned is no turn of a file.
        let cached = FileOptions::default().with_direct(false);
        let file = |scratch: &Scratch| scratch.region(64 << 20, cached);
        let (first, second) = (file(&scratch[0]), file(&scratch[1]));
        let (_one, one) = post(&first, FileAct::Write, 5, &memory);
        let (_two, two) = post(&second, FileAct::Write, 2, &memory);
        let (_read, read) = post(&second, FileAct::Read, 2, &memory);
        let mut queue = Queue::default();
        let turns =
            one.into_iter().chain(two).chain(read).filter_map(|io| queue.push(io).then_some(()));
        assert_eq!(turns.count(), 4, "two files, two reads");
        let mut taken: Vec<Taken> = Vec::new();
        while !queue.turns.is_empty() {
            taken.push(queue.take(4));
        }
        let counts: Vec<_> = taken.iter().map(|taken| taken.ios.len()).collect();
        assert_eq!(counts, [2, 2, 1, 1], "a turn of each file, and the reads");
        let files: Vec<_> = taken.iter().map(|taken| taken.writes_of).collect();
        assert!(files[0] != files[1] && files[2..] == [None, None], "{files:?}");
        // The threads are back: what the first file has left is one turn, the second has none.
        for file in files.into_iter().flatten() {
            queue.written(file);
        }
        assert_eq!((queue.turns.len(), queue.writes.len()), (1, 1));
        taken.push(queue.take(4));
        assert_eq!((taken[4].ios.len(), taken[4].writes_of), (2, taken[0].writes_of));
        queue.written(taken[4].writes_of.unwrap());
        taken.push(queue.take(4));
        queue.written(taken[5].writes_of.unwrap());
        assert_eq!((taken[5].ios.len(), queue.turns.len(), queue.writes.len()), (1, 0, 0));
        for io in taken.into_iter().flat_map(|taken| taken.ios) {
            io.refuse(CLOSED);
        }
    }
}
