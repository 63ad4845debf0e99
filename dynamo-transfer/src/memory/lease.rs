use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use tokio::sync::Notify;

use super::MemoryKind;
use super::access::Memory;
use super::far::Far;
use crate::error::{Error, ErrorKind, Result};
use crate::vocabulary::BackendKind;

/// Memory of the host, or what only an engine reaches, and beside it whoever owns it.
pub(crate) trait Backed<M = Memory>: Send + Sync {
    fn memory(&self) -> &M;
}

/// What a region is made of.
#[derive(Clone)]
pub(super) enum Backing {
    Host(Arc<dyn Backed>),
    Far(Arc<dyn Backed<Far>>),
}

/// A region of host memory in use: keeps the memory alive. The memory is given up before it counts as
/// quiet. Cheap to clone; each counts.
pub(crate) struct Lease<M = Memory> {
    memory: Arc<dyn Backed<M>>,
    region: Use,
    user: Option<Use>,
}

/// A file or memory of a device in use, likewise.
pub(crate) type FarLease = Lease<Far>;

/// A region in use; cheap to clone.
#[derive(Clone)]
pub(crate) enum Leased {
    Host(Lease),
    Far(FarLease),
}

/// How many leases there are of a region, or for a transfer.
#[derive(Default)]
pub(crate) struct Uses {
    count: AtomicUsize,
    none: Notify,
}

/// One of them; a clone is another.
struct Use(Arc<Uses>);

impl Backing {
    pub(super) fn len(&self) -> u64 {
        match self {
            Self::Host(memory) => memory.memory().len(),
            Self::Far(memory) => memory.memory().len(),
        }
    }

    pub(super) fn kind(&self) -> MemoryKind {
        match self {
            Self::Host(memory) if memory.memory().pinned().is_some() => MemoryKind::Pinned,
            Self::Host(_) => MemoryKind::Host,
            Self::Far(memory) => memory.memory().kind(),
        }
    }
}

impl Leased {
    /// Leases a region that has `region` uses to somebody who may count his own as `user`.
    pub(super) fn new(backing: &Backing, region: &Arc<Uses>, user: Option<&Arc<Uses>>) -> Self {
        let (region, user) = (Use::new(region), user.map(Use::new));
        match backing.clone() {
            Backing::Host(memory) => Self::Host(Lease { memory, region, user }),
            Backing::Far(memory) => Self::Far(Lease { memory, region, user }),
        }
    }

    pub(crate) fn len(&self) -> u64 {
        match self {
            Self::Host(lease) => lease.memory().len(),
            Self::Far(lease) => lease.memory().len(),
        }
    }

    /// Returns whose engine moves it, if the process itself cannot.
    pub(crate) fn engine(&self) -> Option<BackendKind> {
        match self {
            Self::Host(_) => None,
            Self::Far(lease) => lease.memory().kind().engine(),
        }
    }

    /// Fails if the other is of the same region.
    pub(crate) fn check_apart(&self, other: &Self) -> Result<()> {
        match (self, other) {
            (Self::Host(one), Self::Host(other)) => one.check_apart(other),
            (Self::Far(one), Self::Far(other)) => one.check_apart(other),
            _ => Ok(()),
        }
    }
}

impl Lease {
    /// Leases memory that is no region: nobody else reaches it.
    pub(crate) fn over(memory: Arc<dyn Backed>) -> Self {
        Self { memory, region: Use::new(&Arc::default()), user: None }
    }
}

impl<M> Lease<M> {
    pub(crate) fn memory(&self) -> &M {
        self.memory.memory()
    }

    /// Fails if the other is of the same region.
    pub(crate) fn check_apart(&self, other: &Self) -> Result<()> {
        if self.order() == other.order() {
            let message = "source and destination are the same region";
            return Err(Error::new(ErrorKind::InvalidArgument, message));
        }
        Ok(())
    }

    /// Returns a number by which the regions of a process are ordered: whoever holds parts of two
    /// takes them in this order.
    pub(crate) fn order(&self) -> usize {
        Arc::as_ptr(&self.region.0).addr()
    }
}

impl<M> Clone for Lease<M> {
    fn clone(&self) -> Self {
        let Self { memory, region, user } = self;
        Self { memory: Arc::clone(memory), region: region.clone(), user: user.clone() }
    }
}

impl Use {
    fn new(uses: &Arc<Uses>) -> Self {
        uses.count.fetch_add(1, Ordering::AcqRel);
        Self(Arc::clone(uses))
    }
}

impl Clone for Use {
    fn clone(&self) -> Self {
        Self::new(&self.0)
    }
}

impl Drop for Use {
    fn drop(&mut self) {
        if self.0.count.fetch_sub(1, Ordering::AcqRel) == 1 {
            self.0.none.notify_waiters();
        }
    }
}

impl Uses {
    /// Waits until there is none.
    pub(crate) async fn quiet(&self) {
        let mut none = std::pin::pin!(self.none.notified());
        loop {
            // Before it looks, lest it miss the last one.
            none.as_mut().enable();
            if self.count.load(Ordering::Acquire) == 0 {
                return;
            }
            none.as_mut().await;
            none.set(self.none.notified());
        }
    }
}
