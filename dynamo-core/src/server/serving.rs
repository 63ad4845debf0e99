use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use super::canary::{self, Activity, Canary};
use super::dispatch::Dispatch;
use super::inflight::Inflight;
use super::listing::{Listing, Presence};
use super::totals::ServerTotals;
use crate::discovery::Instance;
use crate::engine::{Admission, Engine};
use crate::error::Result;
use crate::name::EndpointPath;
use crate::protocol::InstanceId;
use crate::request_plane::{Binding, Ingress, Message};
use crate::runtime::Runtime;

/// How an endpoint is served.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct ServeOptions {
    /// The instance to serve as; one worker uses the same id on all its endpoints.
    pub instance: InstanceId,
    /// The incarnation to register with; a restarted instance takes a higher one.
    pub incarnation: u64,
    /// What the instance says of itself.
    pub labels: BTreeMap<String, String>,
    /// How many requests are served at once.
    pub inflight_max: usize,
    /// How many more may wait here, by priority; further ones get
    /// [`Overloaded`](crate::ErrorKind::Overloaded) and when to come back. None by default: a
    /// client told at once may find room elsewhere.
    pub waiting_max: usize,
}

impl Default for ServeOptions {
    fn default() -> Self {
        Self {
            instance: InstanceId::random(),
            incarnation: 0,
            labels: BTreeMap::new(),
            inflight_max: INFLIGHT_MAX,
            waiting_max: 0,
        }
    }
}

impl ServeOptions {
    /// Serves as `instance`.
    #[must_use]
    pub fn with_instance(mut self, instance: InstanceId) -> Self {
        self.instance = instance;
        self
    }

    /// Registers with `incarnation`.
    #[must_use]
    pub fn with_incarnation(mut self, incarnation: u64) -> Self {
        self.incarnation = incarnation;
        self
    }

    /// Adds a label.
    #[must_use]
    pub fn with_label(mut self, key: impl Into<String>, value: impl Into<String>) -> Self {
        self.labels.insert(key.into(), value.into());
        self
    }

    /// Limits how many requests are served at once.
    #[must_use]
    pub fn with_inflight_max(mut self, inflight_max: usize) -> Self {
        self.inflight_max = inflight_max;
        self
    }

    /// Lets so many more requests wait.
    #[must_use]
    pub fn with_waiting_max(mut self, waiting_max: usize) -> Self {
        self.waiting_max = waiting_max;
        self
    }
}

/// Far above what one engine batches, far below what exhausts memory.
const INFLIGHT_MAX: usize = 1024;

/// An endpoint being served.
///
/// Dropping it removes the instance from discovery, refuses further requests and ends those in
/// flight with [`Unavailable`](crate::ErrorKind::Unavailable); [`drain`](Self::drain) lets them
/// finish first.
#[must_use = "dropping it stops serving"]
pub struct Serving {
    instance: Instance,
    inflight: Arc<Inflight>,
    listing: Arc<Listing>,
    _presence: Arc<Presence>,
    binding: Option<Binding>,
}

/// What became of the requests in flight when an endpoint was drained.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct DrainReport {
    /// Requests that ended by themselves.
    pub finished: usize,
    /// Requests that were ended with [`Unavailable`](crate::ErrorKind::Unavailable) when the time
    /// was up.
    pub killed: usize,
}

/// Binds, then registers: an instance is never listed before it can be reached.
pub(crate) async fn serve<E: Engine<Request: Message, Response: Message>>(
    runtime: &Runtime,
    endpoint: &EndpointPath,
    engine: E,
    options: ServeOptions,
    canary: Option<Canary<E::Request>>,
) -> Result<Serving> {
    let admission = Admission::new(options.inflight_max, options.waiting_max);
    let inflight = Arc::new(Inflight::new(admission));
    let activity = canary.as_ref().map(|_| Arc::new(Activity::new()));
    let totals = ServerTotals::of(runtime.metrics(), endpoint, options.instance);
    totals.add(&inflight);
    let dispatch = Arc::new(Dispatch {
        engine,
        inflight: Arc::clone(&inflight),
        totals,
        activity: activity.clone(),
    });
    let ingress = Ingress::new::<E::Request, E::Response>(dispatch.clone());
    let id = (options.instance, options.incarnation);
    let binding = runtime.request_plane().bind(endpoint, id, ingress).await?;
    let instance = Instance {
        id: options.instance,
        incarnation: options.incarnation,
        endpoint: endpoint.clone(),
        address: binding.address().clone(),
        labels: options.labels,
    };
    let listing = Listing::new(Arc::clone(runtime.discovery()), instance.clone()).await?;
    let listing = Arc::new(listing);
    let presence = Arc::new(Presence(Arc::clone(&listing)));
    runtime.served().add(&presence);
    if let Some((canary, activity)) = canary.zip(activity) {
        runtime.spawn(canary::watch(dispatch, canary, activity, Arc::clone(&listing)));
    }
    Ok(Serving { instance, inflight, listing, _presence: presence, binding: Some(binding) })
}

impl Serving {
    /// Returns the instance as registered.
    pub fn instance(&self) -> &Instance {
        &self.instance
    }

    /// Tells whether the engine answers its [`Canary`]; without one it is taken to.
    pub fn is_healthy(&self) -> bool {
        self.listing.is_healthy()
    }

    /// Returns the number of requests in flight.
    pub fn inflight(&self) -> usize {
        self.inflight.admission().running()
    }

    /// Returns the number of requests that wait for their turn.
    pub fn waiting(&self) -> usize {
        self.inflight.admission().waiting()
    }

    /// Leaves discovery, refuses further requests, and waits until those in flight have ended or
    /// `patience` is over, when the rest is ended.
    ///
    /// # Cancel safety
    /// Dropping the future ends what is still in flight.
    pub async fn drain(mut self, patience: Duration) -> DrainReport {
        self.listing.leave();
        self.inflight.close();
        let before = self.inflight();
        let idle = tokio::time::timeout(patience, self.inflight.admission().idle()).await;
        let killed = if idle.is_ok() { 0 } else { self.inflight.kill_all() };
        self.binding.take();
        DrainReport { finished: before.saturating_sub(killed), killed }
    }
}

impl Drop for Serving {
    fn drop(&mut self) {
        self.listing.leave();
        self.inflight.close();
        self.binding.take();
        self.inflight.kill_all();
    }
}

impl fmt::Debug for Serving {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Serving")
            .field("instance", &self.instance)
            .field("inflight", &self.inflight())
            .finish_non_exhaustive()
    }
}
