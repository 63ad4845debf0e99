use std::collections::VecDeque;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};

use super::error::{CANCELLED, CLOSED};
use super::io::{Engine, Io};
use super::sys;
use super::threads::Threads;
use crate::error::Result;

/// Reads and writes on a few threads, each of which waits for one IO at a time.
pub(super) struct Pool {
    queue: Mutex<Queue>,
    filled: Condvar,
    threads: usize,
}

#[derive(Default)]
struct Queue {
    ios: VecDeque<Io>,
    /// Threads that wait for work.
    idle: usize,
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
        let (mut taken, mut iovecs) = (Vec::new(), Vec::new());
        while let Some(is_closing) = self.take(&mut taken) {
            for io in taken.drain(..) {
                if is_closing {
                    io.refuse(CLOSED);
                } else if io.is_cancelled() {
                    io.refuse(CANCELLED);
                } else {
                    let result = sys::run(&io, &mut iovecs);
                    io.finish(result);
                }
            }
        }
    }

    /// Waits for IOs and tells whether the pool is closing; `None` when there will be no more.
    ///
    /// Short ones that only copy are taken together, a fair share of what waits.
    fn take(&self, taken: &mut Vec<Io>) -> Option<bool> {
        let mut queue = self.lock();
        while queue.ios.is_empty() {
            if queue.is_closing {
                return None;
            }
            queue.idle += 1;
            queue = self.filled.wait(queue).unwrap_or_else(PoisonError::into_inner);
            queue.idle -= 1;
        }
        let share = queue.ios.len().div_ceil(self.threads);
        let mut len = 0;
        while taken.len() < share && len < TOGETHER_BYTES {
            let Some(io) = queue.ios.pop_front() else { break };
            len += if io.direct { TOGETHER_BYTES } else { io.size };
            taken.push(io);
        }
        Some(queue.is_closing)
    }

    fn lock(&self) -> MutexGuard<'_, Queue> {
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Engine for Pool {
    fn submit(&self, batch: Vec<Io>) {
        let mut queue = self.lock();
        if queue.is_closing {
            drop(queue);
            return batch.into_iter().for_each(|io| io.refuse(CLOSED));
        }
        let wanted = batch.len().min(queue.idle);
        queue.ios.extend(batch);
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
