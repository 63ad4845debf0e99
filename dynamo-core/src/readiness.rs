//! Whether what a runtime serves is ready.

use std::fmt;
use std::sync::{Arc, Mutex, PoisonError, Weak};

use crate::discovery::Instance;

/// How it stands with an instance that is served here.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Readiness {
    /// The instance, in the incarnation that it has now.
    pub instance: Instance,
    /// Whether requests may come.
    pub state: State,
    /// Why not, as far as that is known.
    pub reason: Option<String>,
}

/// Whether requests may come to an instance.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum State {
    /// It is listed in discovery.
    Listed,
    /// It has not answered its [`Canary`](crate::Canary), and is not listed again yet.
    Unhealthy,
    /// Another one has taken its place in discovery, and requests go there; for good.
    Displaced,
    /// It drains.
    Leaving,
}

impl fmt::Display for State {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Listed => "listed",
            Self::Unhealthy => "unhealthy",
            Self::Displaced => "displaced",
            Self::Leaving => "leaving",
        })
    }
}

impl fmt::Display for Readiness {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} is {}", self.instance, self.state)?;
        match &self.reason {
            Some(reason) => write!(f, ": {reason}"),
            None => Ok(()),
        }
    }
}

/// An instance that is served here.
pub(crate) trait Served: Send + Sync {
    fn readiness(&self) -> Readiness;
}

/// The instances that one runtime serves; cheap to clone.
#[derive(Clone, Default)]
pub(crate) struct ServedHere(Arc<Mutex<Vec<Weak<dyn Served>>>>);

impl ServedHere {
    /// Knows of `served` as long as somebody else keeps it.
    pub(crate) fn add<S: Served + 'static>(&self, served: &Arc<S>) {
        let mut all = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        all.retain(|served| served.strong_count() > 0);
        let served: Weak<S> = Arc::downgrade(served);
        all.push(served);
    }

    /// Says how it stands with each.
    pub(crate) fn readiness(&self) -> Vec<Readiness> {
        let all: Vec<_> = {
            let all = self.0.lock().unwrap_or_else(PoisonError::into_inner);
            all.iter().filter_map(Weak::upgrade).collect()
        };
        all.iter().map(|served| served.readiness()).collect()
    }
}
