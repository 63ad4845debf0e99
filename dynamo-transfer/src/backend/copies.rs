use std::collections::VecDeque;
use std::num::NonZeroUsize;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use futures::future::join_all;
use tokio::sync::oneshot;
use tokio_util::task::TaskTracker;

use crate::error::{Error, ErrorKind, Result};
use crate::vocabulary::Priority;

/// Runs copies of an agent's transfers: those inside the process, or those between processes of this
/// host. Cheap to clone.
///
/// What is too much for whoever waits is copied on blocking threads of the runtime, which the application
/// has its own use for: an agent takes a few of them at once. The most urgent transfer has its turn next,
/// those of one priority in the order they come, and one that is dropped while it waits never runs.
#[derive(Clone)]
pub(crate) struct Copies {
    threads: Arc<Threads>,
    tasks: TaskTracker,
}

/// The threads that may copy at once, and who waits for one.
struct Threads(Mutex<Turns>);

struct Turns {
    /// None while anyone waits.
    free: usize,
    /// By priority; who was dropped meanwhile is passed over.
    waiting: [VecDeque<oneshot::Sender<Thread>>; 3],
}

/// The right to one; whoever waits has it next. Empty once it was passed on.
struct Thread(Option<Arc<Threads>>);

impl Copies {
    pub(crate) fn new(tasks: &TaskTracker) -> Self {
        let cores = std::thread::available_parallelism().map_or(1, NonZeroUsize::get);
        Self::on(cores.clamp(THREADS_MIN, THREADS_MAX), tasks)
    }

    fn on(threads: usize, tasks: &TaskTracker) -> Self {
        let turns = Turns { free: threads, waiting: Default::default() };
        Self { threads: Arc::new(Threads(Mutex::new(turns))), tasks: tasks.clone() }
    }

    /// Copies `bytes` bytes: here if they are few, else on a thread, and on a second one if that pays and
    /// nobody waits for it. Returns what each `copy` has come to; they share the work between them.
    pub(super) async fn run<T: Send + 'static>(
        &self,
        bytes: u64,
        priority: Priority,
        copy: impl Fn() -> Result<T> + Clone + Send + 'static,
    ) -> Vec<Result<T>> {
        if bytes <= BRIEF_BYTES_MAX {
            return vec![copy()];
        }
        let Some(first) = self.threads.wait(priority).await else {
            return vec![Err(Error::shut_down())];
        };
        let has_second = bytes > THREAD_BYTES_MIN;
        let second = has_second.then(|| self.threads.take()).flatten();
        let copies = std::iter::once(first).chain(second).map(|thread| {
            let copy = copy.clone();
            self.tasks.spawn_blocking(move || {
                let _thread = thread;
                copy()
            })
        });
        let copied = join_all(copies).await.into_iter();
        let internal = |e| Err(Error::new(ErrorKind::Internal, "copying").with_source(e));
        copied.map(|copied| copied.unwrap_or_else(internal)).collect()
    }
}

impl Threads {
    /// Takes a thread that nobody else has or waits for.
    fn take(self: &Arc<Self>) -> Option<Thread> {
        let mut turns = self.lock();
        turns.free = turns.free.checked_sub(1)?;
        Some(Thread(Some(Arc::clone(self))))
    }

    async fn wait(self: &Arc<Self>, priority: Priority) -> Option<Thread> {
        let comes = {
            let mut turns = self.lock();
            if let Some(left) = turns.free.checked_sub(1) {
                turns.free = left;
                return Some(Thread(Some(Arc::clone(self))));
            }
            let (turn, comes) = oneshot::channel();
            turns.waiting[priority as usize].push_back(turn);
            comes
        };
        comes.await.ok()
    }

    fn lock(&self) -> MutexGuard<'_, Turns> {
        // Nothing panics under it.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Thread {
    fn drop(&mut self) {
        let Some(mut threads) = self.0.take() else { return };
        loop {
            let mut turns = threads.lock();
            let next = turns.waiting.iter_mut().rev().find_map(VecDeque::pop_front);
            let Some(next) = next else {
                turns.free += 1;
                return;
            };
            drop(turns);
            match next.send(Self(Some(threads))).map_err(|mut thread| thread.0.take()) {
                Err(Some(back)) => threads = back,
                Ok(()) | Err(None) => return,
            }
        }
    }
}

/// Copied by whoever waits for the transfer: waking a thread takes as long.
pub(super) const BRIEF_BYTES_MAX: u64 = 64 << 10;

/// What is worth a second thread: two fill the memory of most machines.
const THREAD_BYTES_MIN: u64 = 8 << 20;

/// As many as one transfer is fastest with.
const THREADS_MIN: usize = 2;

/// Two transfers at their best, or four with a thread each: more than two fill few memories.
const THREADS_MAX: usize = 4;

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};
    use std::sync::{Condvar, Mutex};

    use tokio::sync::mpsc;

    use super::*;
    use crate::{Agent, AgentConfig, BackendKind, HostBuffer, MemoryFabric, TransferOptions};

    const LARGE: u64 = 1 << 30;

    /// What copies wait for, and who they are.
    struct Gate {
        is_open: Mutex<bool>,
        opened: Condvar,
        begun: mpsc::Sender<usize>,
        running: AtomicUsize,
        running_max: AtomicUsize,
    }

    impl Gate {
        fn new() -> (Arc<Self>, mpsc::Receiver<usize>) {
            let (begun, copies) = mpsc::channel(1024);
            let (is_open, opened) = Default::default();
            let (running, running_max) = Default::default();
            (Arc::new(Self { is_open, opened, begun, running, running_max }), copies)
        }

        /// Is a copy of transfer `index`.
        fn pass(&self, index: usize) {
            let running = self.running.fetch_add(1, Ordering::SeqCst) + 1;
            self.running_max.fetch_max(running, Ordering::SeqCst);
            self.begun.try_send(index).unwrap();
            let is_open = self.is_open.lock().unwrap();
            drop(self.opened.wait_while(is_open, |is_open| !*is_open).unwrap());
            self.running.fetch_sub(1, Ordering::SeqCst);
        }

        fn open(&self) {
            *self.is_open.lock().unwrap() = true;
            self.opened.notify_all();
        }
    }

    #[tokio::test]
    async fn the_most_urgent_has_its_turn_next_and_one_that_is_dropped_while_it_waits_never_runs() {
        let (tasks, (gate, mut begun)) = (TaskTracker::new(), Gate::new());
        let copies = Copies::on(1, &tasks);
        let priorities = [Priority::Normal, Priority::Low, Priority::High];
        let transfer = |index: usize| {
            let (copies, gate) = (copies.clone(), Arc::clone(&gate));
            let copy = move || -> Result<()> {
                gate.pass(index);
                Ok(())
            };
            Box::pin(async move { copies.run(LARGE, priorities[index % 3], copy).await })
        };
        let mut transfers: Vec<_> = (0..64).map(transfer).collect();
        for transfer in &mut transfers {
            assert!(futures::poll!(transfer).is_pending());
        }
        assert_eq!(begun.recv().await, Some(0));
        // One of high priority, and the first of low.
        drop(transfers.remove(41));
        drop(transfers.remove(1));
        gate.open();
        let copied = join_all(transfers).await;
        assert!(copied.iter().all(|copied| copied.len() == 1 && copied[0].is_ok()));
        let mut order = Vec::new();
        while let Ok(index) = begun.try_recv() {
            order.push(index);
        }
        let of = |priority| (1..64).filter(move |index| priorities[index % 3] == priority);
        let expected = of(Priority::High).chain(of(Priority::Normal)).chain(of(Priority::Low));
        let expected: Vec<_> = expected.filter(|index| ![41, 1].contains(index)).collect();
        assert_eq!(order, expected);
        tasks.close();
        tasks.wait().await;
    }

    #[tokio::test]
    async fn a_transfer_has_two_threads_if_nobody_waits_and_never_more_are_used_than_there_are() {
        let (tasks, (gate, mut begun)) = (TaskTracker::new(), Gate::new());
        let copies = Copies::on(3, &tasks);
        let transfer = |(index, bytes)| {
            let (copies, gate) = (copies.clone(), Arc::clone(&gate));
            let copy = move || -> Result<()> {
                gate.pass(index);
                Ok(())
            };
            Box::pin(async move { copies.run(bytes, Priority::Normal, copy).await })
        };
        let few = (0, BRIEF_BYTES_MAX + 1);
        let mut transfers: Vec<_> =
            [few, (1, LARGE), (2, LARGE), (3, LARGE)].into_iter().map(transfer).collect();
        for transfer in &mut transfers {
            assert!(futures::poll!(transfer).is_pending());
        }
        let mut first = [(); 3].map(|()| usize::MAX);
        for index in &mut first {
            *index = begun.recv().await.unwrap();
        }
        first.sort_unstable();
        assert_eq!(first, [0, 1, 1]);
        gate.open();
        let threads: Vec<_> = join_all(transfers).await.iter().map(Vec::len).collect();
        assert_eq!(threads[..2], [1, 2]);
        assert_eq!(gate.running_max.load(Ordering::SeqCst), 3);
        tasks.close();
        tasks.wait().await;
    }

    /// Returns how many threads of a runtime 64 transfers take that are posted at once: a few more than
    /// copy at once, for one that has ended its copy may not be idle yet when the next one begins.
    fn threads_taken(expected: BackendKind) -> usize {
        const BYTES: usize = 9 << 20;
        let count = Arc::new(AtomicUsize::new(0));
        let started = Arc::clone(&count);
        let mut runtime = tokio::runtime::Builder::new_current_thread();
        runtime.enable_all().on_thread_start(move || {
            started.fetch_add(1, Ordering::SeqCst);
        });
        runtime.build().unwrap().block_on(async {
            let [fabric, other] = [MemoryFabric::new(), MemoryFabric::new()];
            let own = if expected == BackendKind::Memcpy { fabric.clone() } else { other };
            let owner = AgentConfig::default().with_fabric(fabric);
            let owner = owner.with_shm(expected == BackendKind::Shm);
            let owner = Agent::start(owner).await.unwrap();
            let agent = Agent::start(AgentConfig::default().with_fabric(own)).await.unwrap();
            let source = owner.register(vec![vec![7u8; BYTES]]).unwrap();
            let peer = agent.load_metadata(&owner.metadata([source.grant()]).unwrap()).unwrap();
            let target = agent.register_mut(vec![HostBuffer::new(BYTES)]).unwrap();
            let all = [(0, BYTES as u64)];
            let transfers = (0..64).map(|_| {
                let (local, remote) = (target.descriptor(all), peer.regions()[0].descriptor(all));
                agent.read(local.unwrap(), remote.unwrap(), TransferOptions::default())
            });
            let transfers: Vec<_> = transfers.collect();
            for report in join_all(transfers).await {
                let report = report.unwrap();
                assert_eq!((report.bytes, report.backend), (BYTES as u64, expected));
            }
            assert!(target.close().await[0].iter().all(|byte| *byte == 7));
            agent.shutdown().await;
            owner.shutdown().await;
        });
        count.load(Ordering::SeqCst)
    }

    #[test]
    #[cfg_attr(miri, ignore = "asks the kernel for its threads")]
    fn sixty_four_large_transfers_at_once_leave_the_threads_of_the_runtime_to_others() {
        let few = 1..=16;
        let threads = threads_taken(BackendKind::Memcpy);
        assert!(few.contains(&threads), "{threads} for memcpy");
        #[cfg(target_os = "linux")]
        {
            let threads = threads_taken(BackendKind::Shm);
            assert!(few.contains(&threads), "{threads} for shm");
        }
    }
}
