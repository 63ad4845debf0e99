use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use tokio::sync::Notify;

use super::MemoryKind;
use super::access::Memory;
use super::far::Far;

/// Memory of the host, and beside it whoever owns it.
pub(crate) trait Backed: Send + Sync {
    fn memory(&self) -> &Memory;
}

/// Memory that only an engine reaches, and beside it whoever owns it.
pub(super) trait FarBacked: Send + Sync {
    fn far(&self) -> &Far;
}

/// What a region is made of.
#[derive(Clone)]
pub(super) enum Backing {
    Host(Arc<dyn Backed>),
    Far(Arc<dyn FarBacked>),
}

/// A region of host memory in use: keeps the memory alive. The memory is given up before it counts as
/// quiet.
pub(crate) struct Lease {
    memory: Arc<dyn Backed>,
    region: Use,
    _user: Option<Use>,
}

/// A file or memory of a device in use, likewise.
pub(crate) struct FarLease {
    memory: Arc<dyn FarBacked>,
    region: Use,
    _user: Option<Use>,
}

/// A region in use.
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

/// One of them.
struct Use(Arc<Uses>);

impl Backing {
    pub(super) fn len(&self) -> u64 {
        match self {
            Self::Host(memory) => memory.memory().len(),
            Self::Far(memory) => memory.far().len(),
        }
    }

    pub(super) fn kind(&self) -> MemoryKind {
        match self {
            Self::Host(memory) if memory.memory().pinned().is_some() => MemoryKind::Pinned,
            Self::Host(_) => MemoryKind::Host,
            Self::Far(memory) => memory.far().kind(),
        }
    }
}

impl Leased {
    /// Leases a region that has `region` uses to somebody who may count his own as `user`.
    pub(super) fn new(backing: &Backing, region: &Arc<Uses>, user: Option<&Arc<Uses>>) -> Self {
        let (region, _user) = (Use::new(region), user.map(Use::new));
        match backing.clone() {
            Backing::Host(memory) => Self::Host(Lease { memory, region, _user }),
            Backing::Far(memory) => Self::Far(FarLease { memory, region, _user }),
        }
    }

    pub(crate) fn len(&self) -> u64 {
        match self {
            Self::Host(lease) => lease.memory().len(),
            Self::Far(lease) => lease.far().len(),
        }
    }
}

impl FarLease {
    pub(crate) fn far(&self) -> &Far {
        self.memory.far()
    }

    /// Returns a number that no other region in use has.
    pub(crate) fn order(&self) -> usize {
        self.region.order()
    }
}

impl Lease {
    /// Leases memory that is no region: nobody else reaches it.
    pub(crate) fn over(memory: Arc<dyn Backed>) -> Self {
        Self { memory, region: Use::new(&Arc::default()), _user: None }
    }

    pub(crate) fn memory(&self) -> &Memory {
        self.memory.memory()
    }

    pub(crate) fn is_same_region(&self, other: &Self) -> bool {
        self.order() == other.order()
    }

    /// Returns a number by which the regions of a process are ordered: whoever holds parts of two
    /// takes them in this order.
    pub(crate) fn order(&self) -> usize {
        self.region.order()
    }
}

impl Use {
    fn new(uses: &Arc<Uses>) -> Self {
        uses.count.fetch_add(1, Ordering::AcqRel);
        Self(Arc::clone(uses))
    }

    fn order(&self) -> usize {
        Arc::as_ptr(&self.0).addr()
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
