//! Whether a request goes on: one level per context, told to its children and to whoever waits.

use std::pin::Pin;
use std::sync::atomic::{AtomicU8, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::task::{Context, Poll, Waker};

use slab::Slab;

/// How far a request is cancelled; a level is never lowered.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Level {
    Live = 0,
    /// An early, orderly end is asked for.
    Stopped = 1,
    /// It is over.
    Killed = 2,
}

/// The level of a context, which is at least that of each of its parents.
#[derive(Debug)]
pub(crate) struct Cancellation {
    level: AtomicU8,
    listeners: Mutex<Slab<Listener>>,
    /// Keeps it known to them.
    _parents: [Option<Listening>; 2],
}

#[derive(Debug)]
enum Listener {
    Task(Waker),
    Child(Weak<Cancellation>),
}

impl Cancellation {
    pub(crate) fn new() -> Arc<Self> {
        Arc::new(Self::with_parents([None, None]))
    }

    /// Returns one that is cancelled with either of `parents`, and on its own.
    pub(crate) fn child_of(parents: [Option<&Arc<Self>>; 2]) -> Arc<Self> {
        let child = Arc::new_cyclic(|child: &Weak<Self>| {
            let listen = |parent| Listening::new(parent, Listener::Child(child.clone()));
            Self::with_parents(parents.map(|parent| parent.map(listen)))
        });
        // Who was told before the child was there did not reach it: under the lock, so that the raise
        // is either seen here or finds the child.
        for parent in parents.into_iter().flatten() {
            let level = {
                let _told = parent.listeners();
                parent.level.load(Ordering::Acquire)
            };
            child.level.fetch_max(level, Ordering::AcqRel);
        }
        child
    }

    fn with_parents(parents: [Option<Listening>; 2]) -> Self {
        let level = AtomicU8::new(Level::Live as u8);
        Self { level, listeners: Mutex::new(Slab::new()), _parents: parents }
    }

    /// Tells whether the level is reached.
    pub(crate) fn has_reached(&self, level: Level) -> bool {
        self.level.load(Ordering::Acquire) >= level as u8
    }

    /// Raises the level, here and below, and wakes whoever listens.
    pub(crate) fn raise(self: &Arc<Self>, level: Level) {
        let mut tasks = Vec::new();
        let mut below = vec![Arc::clone(self)];
        while let Some(node) = below.pop() {
            if node.level.fetch_max(level as u8, Ordering::AcqRel) >= level as u8 {
                continue;
            }
            for (_, listener) in &*node.listeners() {
                match listener {
                    Listener::Task(waker) => tasks.push(waker.clone()),
                    Listener::Child(child) => below.extend(child.upgrade()),
                }
            }
        }
        // Whoever is told may come back at once: under no lock.
        tasks.into_iter().for_each(Waker::wake);
    }

    fn listeners(&self) -> MutexGuard<'_, Slab<Listener>> {
        self.listeners.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A listener is told of each raise until this is dropped.
#[derive(Debug)]
pub(crate) struct Listening {
    node: Arc<Cancellation>,
    key: usize,
}

impl Listening {
    fn new(node: &Arc<Cancellation>, listener: Listener) -> Self {
        let key = node.listeners().insert(listener);
        Self { node: Arc::clone(node), key }
    }

    /// Has `waker` woken by each raise, also by one that was before.
    #[cfg(any(test, feature = "tcp", feature = "nats"))]
    pub(crate) fn wake(node: &Arc<Cancellation>, waker: Waker) -> Self {
        let listening = Self::new(node, Listener::Task(waker.clone()));
        if node.has_reached(Level::Stopped) {
            waker.wake();
        }
        listening
    }
}

impl Drop for Listening {
    fn drop(&mut self) {
        let listener = self.node.listeners().try_remove(self.key);
        // Not under the lock: it may hold the last of a task.
        drop(listener);
    }
}

/// Completes once a level is reached.
#[derive(Debug)]
pub(crate) struct Reached {
    node: Arc<Cancellation>,
    level: Level,
    listening: Option<Listening>,
}

impl Reached {
    pub(crate) fn new(node: &Arc<Cancellation>, level: Level) -> Self {
        Self { node: Arc::clone(node), level, listening: None }
    }
}

impl Future for Reached {
    type Output = ();

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        let this = &mut *self;
        if this.node.has_reached(this.level) {
            return Poll::Ready(());
        }
        match &this.listening {
            None => {
                let listener = Listener::Task(cx.waker().clone());
                this.listening = Some(Listening::new(&this.node, listener));
            }
            Some(Listening { key, .. }) => {
                let mut listeners = this.node.listeners();
                let displaced = match listeners.get_mut(*key) {
                    Some(Listener::Task(waker)) if !waker.will_wake(cx.waker()) => {
                        Some(std::mem::replace(waker, cx.waker().clone()))
                    }
                    _ => None,
                };
                drop(listeners);
                drop(displaced);
            }
        }
        // A raise that came before the listener is seen here, one behind it wakes it.
        if this.node.has_reached(this.level) { Poll::Ready(()) } else { Poll::Pending }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::AtomicUsize;
    use std::task::Wake;

    use super::*;

    #[derive(Default)]
    struct Woken(AtomicUsize);

    impl Wake for Woken {
        fn wake(self: Arc<Self>) {
            self.0.fetch_add(1, Ordering::Relaxed);
        }
    }

    #[test]
    fn a_level_goes_down_the_tree_and_never_up() {
        let (first, second) = (Cancellation::new(), Cancellation::new());
        let child = Cancellation::child_of([Some(&first), Some(&second)]);
        let grandchild = Cancellation::child_of([Some(&child), None]);
        first.raise(Level::Stopped);
        assert!(grandchild.has_reached(Level::Stopped) && !grandchild.has_reached(Level::Killed));
        second.raise(Level::Killed);
        assert!(grandchild.has_reached(Level::Killed) && !first.has_reached(Level::Killed));
        first.raise(Level::Stopped);
        assert!(child.has_reached(Level::Killed));
        assert!(Cancellation::child_of([Some(&second), None]).has_reached(Level::Killed));
    }

    #[test]
    fn whoever_listens_is_woken_by_each_raise_and_gone_without_a_trace() {
        let (node, woken) = (Cancellation::new(), Arc::<Woken>::default());
        let child = Cancellation::child_of([Some(&node), None]);
        let listening = Listening::wake(&child, Arc::clone(&woken).into());
        let mut killed = Reached::new(&child, Level::Killed);
        let waker = Arc::clone(&woken).into();
        assert!(Pin::new(&mut killed).poll(&mut Context::from_waker(&waker)).is_pending());
        node.raise(Level::Stopped);
        assert_eq!(woken.0.load(Ordering::Relaxed), 2);
        assert!(Pin::new(&mut killed).poll(&mut Context::from_waker(&waker)).is_pending());
        node.raise(Level::Killed);
        assert_eq!(woken.0.load(Ordering::Relaxed), 4);
        assert!(Pin::new(&mut killed).poll(&mut Context::from_waker(&waker)).is_ready());
        drop((listening, killed));
        assert!(child.listeners().is_empty());
        drop(child);
        assert!(node.listeners().is_empty());
        // One who comes late is told at once.
        drop(Listening::wake(&node, Arc::clone(&woken).into()));
        assert_eq!(woken.0.load(Ordering::Relaxed), 5);
    }

    #[test]
    fn a_child_made_while_its_parent_is_cancelled_is_always_told() {
        for _ in 0..2000 {
            let node = Cancellation::new();
            let killer = std::thread::spawn({
                let node = Arc::clone(&node);
                move || node.raise(Level::Killed)
            });
            let child = Cancellation::child_of([Some(&node), None]);
            let grandchild = Cancellation::child_of([Some(&child), None]);
            killer.join().unwrap();
            assert!(grandchild.has_reached(Level::Killed));
        }
    }
}
