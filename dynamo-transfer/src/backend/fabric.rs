use std::collections::HashMap;
use std::fmt;
use std::sync::{Arc, Mutex, PoisonError, Weak};

use crate::endpoint::Endpoint;
use crate::error::{Error, ErrorKind, Result};
use crate::memory::random;
use crate::peer::PeerAddress;

/// The agents of one process that reach each other by memcpy; cheap to clone.
#[derive(Clone)]
pub struct MemoryFabric(Arc<Fabric>);

struct Fabric {
    id: u64,
    endpoints: Mutex<HashMap<u64, Weak<Endpoint>>>,
}

impl MemoryFabric {
    /// Creates a fabric without agents.
    ///
    /// # Panics
    /// If the operating system gives no random numbers.
    pub fn new() -> Self {
        let id = random().expect("the operating system gives random numbers");
        Self(Arc::new(Fabric { id, endpoints: Mutex::default() }))
    }

    pub(crate) fn id(&self) -> u64 {
        self.0.id
    }

    pub(crate) fn join(&self, endpoint: &Arc<Endpoint>) {
        let mut endpoints = self.0.endpoints.lock().unwrap_or_else(PoisonError::into_inner);
        endpoints.retain(|_, endpoint| endpoint.strong_count() > 0);
        endpoints.insert(endpoint.incarnation, Arc::downgrade(endpoint));
    }

    pub(crate) fn leave(&self, incarnation: u64) {
        self.0.endpoints.lock().unwrap_or_else(PoisonError::into_inner).remove(&incarnation);
    }

    /// Returns the peer's end if that very incarnation lives here.
    pub(super) fn find(&self, peer: &PeerAddress) -> Result<Arc<Endpoint>> {
        let endpoints = self.0.endpoints.lock().unwrap_or_else(PoisonError::into_inner);
        endpoints.get(&peer.incarnation).and_then(Weak::upgrade).ok_or_else(|| {
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
