//! A directory inside the process: what `memory` and `static_list` share.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use futures::StreamExt;
use futures::stream::BoxStream;
use tokio::sync::watch;

use super::known::{Instances, Known, changes};
use super::{Change, Displacement, Instance, Registration};
use crate::error::{Error, ErrorKind, Result};
use crate::name::EndpointPath;
use crate::protocol::InstanceId;

/// The directory; a clone is the same one.
#[derive(Clone, Default)]
pub(super) struct Local(Arc<Mutex<Directory>>);

#[derive(Default)]
struct Directory {
    endpoints: BTreeMap<EndpointPath, Posted>,
    registrations: u64,
}

#[derive(Default)]
struct Posted {
    /// Stays for good; a registration of the same id stands in front of it.
    listed: Instances,
    registered: BTreeMap<InstanceId, Registered>,
    known: watch::Sender<Known>,
}

struct Registered {
    /// Which registration this is: a later one of the same id is another.
    registration: u64,
    instance: Instance,
    displacement: Displacement,
}

impl Local {
    /// Lists `instances`; the same one twice is [`InvalidArgument`](ErrorKind::InvalidArgument).
    pub(super) fn listing(instances: impl IntoIterator<Item = Instance>) -> Result<Self> {
        let mut directory = Directory::default();
        for instance in instances {
            let posted = directory.posted(&instance.endpoint);
            if posted.listed.contains_key(&instance.id) {
                return Err(Error::invalid(format!("{instance} is listed twice")));
            }
            posted.listed.insert(instance.id, instance);
        }
        Ok(Self(Arc::new(Mutex::new(directory))))
    }

    pub(super) fn register(&self, instance: Instance) -> Result<Registration> {
        let (id, endpoint) = (instance.id, instance.endpoint.clone());
        let mut directory = self.lock();
        directory.registrations += 1;
        let registration = directory.registrations;
        let posted = directory.posted(&endpoint);
        let known = posted.registered.get(&id).map(|known| known.instance.incarnation);
        if known.is_some_and(|known| known >= instance.incarnation) {
            let message = format!("{instance} is registered already");
            return Err(Error::new(ErrorKind::Conflict, message));
        }
        let displacement = Displacement::default();
        if let Some(earlier) = posted.registered.get(&id) {
            earlier.displacement.by_later(&instance);
        }
        let ours = Registered { registration, instance, displacement: displacement.clone() };
        posted.registered.insert(id, ours);
        posted.publish();
        drop(directory);
        let local = self.clone();
        let remove = move || local.lock().remove(&endpoint, id, registration);
        Ok(Registration::new(remove).with_displacement(displacement))
    }

    pub(super) fn watch(&self, endpoint: &EndpointPath) -> BoxStream<'static, Change> {
        let mut directory = self.lock();
        let posted = directory.posted(endpoint);
        // Nothing may have been said of the endpoint so far.
        posted.publish();
        changes(posted.known.subscribe(), 0).boxed()
    }

    fn lock(&self) -> MutexGuard<'_, Directory> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Directory {
    fn posted(&mut self, endpoint: &EndpointPath) -> &mut Posted {
        self.endpoints.entry(endpoint.clone()).or_default()
    }

    fn remove(&mut self, endpoint: &EndpointPath, id: InstanceId, registration: u64) {
        let Some(posted) = self.endpoints.get_mut(endpoint) else { return };
        if posted.registered.get(&id).is_some_and(|known| known.registration == registration) {
            posted.registered.remove(&id);
            posted.publish();
        }
        let is_watched = posted.known.receiver_count() > 0;
        if !is_watched && posted.registered.is_empty() && posted.listed.is_empty() {
            self.endpoints.remove(endpoint);
        }
    }
}

impl Posted {
    fn publish(&self) {
        let mut instances = self.listed.clone();
        let registered = self.registered.iter();
        instances.extend(registered.map(|(id, known)| (*id, known.instance.clone())));
        let instances = Some(instances);
        self.known.send_if_modified(|known| {
            let is_news = known.instances != instances;
            known.instances = instances;
            is_news
        });
    }
}

impl fmt::Debug for Local {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut endpoints = f.debug_map();
        for (endpoint, posted) in &self.lock().endpoints {
            let ids: BTreeSet<_> = posted.listed.keys().chain(posted.registered.keys()).collect();
            endpoints.entry(endpoint, &ids);
        }
        endpoints.finish()
    }
}
