use std::collections::HashMap;
use std::fmt;
use std::sync::{Arc, Mutex, PoisonError, Weak};

use crate::error::{Error, ErrorKind, Result};
use crate::inbound::Inbound;
use crate::memory::random;
use crate::peer::PeerAddress;

/// The agents of one process that reach each other by memcpy; cheap to clone.
#[derive(Clone)]
pub struct MemoryFabric(Arc<Fabric>);

struct Fabric {
    id: u64,
    agents: Mutex<HashMap<u64, Weak<Inbound>>>,
}

impl MemoryFabric {
    /// Creates a fabric without agents.
    ///
    /// # Panics
    /// If the operating system gives no random numbers.
    pub fn new() -> Self {
        let id = random().expect("the operating system gives random numbers");
        Self(Arc::new(Fabric { id, agents: Mutex::default() }))
    }

    pub(crate) fn id(&self) -> u64 {
        self.0.id
    }

    pub(crate) fn join(&self, inbound: &Arc<Inbound>) {
        let mut agents = self.0.agents.lock().unwrap_or_else(PoisonError::into_inner);
        agents.retain(|_, inbound| inbound.strong_count() > 0);
        agents.insert(inbound.incarnation, Arc::downgrade(inbound));
    }

    pub(crate) fn leave(&self, incarnation: u64) {
        self.0.agents.lock().unwrap_or_else(PoisonError::into_inner).remove(&incarnation);
    }

    /// Returns the peer's end if that very incarnation lives here.
    pub(super) fn find(&self, peer: &PeerAddress) -> Result<Arc<Inbound>> {
        let agents = self.0.agents.lock().unwrap_or_else(PoisonError::into_inner);
        agents.get(&peer.incarnation).and_then(Weak::upgrade).ok_or_else(|| {
            let message = format!("incarnation {:x} has ended", peer.incarnation);
            Error::new(ErrorKind::StaleRegion, message).with_peer(&peer.name)
        })
    }
}

impl Default for MemoryFabric {
    fn default() -> Self {
        Self::new()
    }
}

impl fmt::Debug for MemoryFabric {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("MemoryFabric").field("id", &self.0.id).finish_non_exhaustive()
    }
}
