//! The nouns of a graph: namespace → component → endpoint.

mod endpoint;

pub use endpoint::Endpoint;

use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::error::Result;
use crate::event_plane::{Publisher, Subscriber, Topic};
use crate::name::{EndpointPath, Name};
use crate::request_plane::Message;
use crate::runtime::Runtime;

/// Isolates one deployment from another; cheap to clone.
#[derive(Debug, Clone)]
pub struct Namespace {
    runtime: Runtime,
    name: Name,
}

impl Runtime {
    /// Returns the namespace `name`; [`InvalidArgument`](crate::ErrorKind) if that is no [`Name`].
    pub fn namespace(&self, name: &str) -> Result<Namespace> {
        Ok(Namespace { runtime: self.clone(), name: Name::new(name)? })
    }
}

impl Namespace {
    /// Returns the component `name`; [`InvalidArgument`](crate::ErrorKind) if that is no
    /// [`Name`].
    pub fn component(&self, name: &str) -> Result<Component> {
        Ok(Component { namespace: self.clone(), name: Name::new(name)? })
    }
}

/// One role in the graph, served by any number of instances; cheap to clone.
#[derive(Debug, Clone)]
pub struct Component {
    namespace: Namespace,
    name: Name,
}

impl Component {
    /// Returns the endpoint `name`, which takes `Req` and answers with a stream of `Resp`;
    /// [`InvalidArgument`](crate::ErrorKind) if that is no [`Name`].
    pub fn endpoint<Req, Resp>(&self, name: &str) -> Result<Endpoint<Req, Resp>>
    where
        Req: Message,
        Resp: Message,
    {
        let path = EndpointPath {
            namespace: self.namespace.name.clone(),
            component: self.name.clone(),
            endpoint: Name::new(name)?,
        };
        Ok(Endpoint::new(self.namespace.runtime.clone(), path))
    }

    /// Returns a publisher of this component's events named `event`.
    pub fn publisher<T: Serialize + 'static>(&self, event: &str) -> Result<Publisher<T>> {
        let plane = self.namespace.runtime.event_plane().clone();
        Ok(Publisher::new(plane, self.topic(event)?))
    }

    /// Starts to listen to this component's events named `event`, from all its instances.
    ///
    /// # Cancel safety
    /// Cancel safe.
    pub async fn subscriber<T: DeserializeOwned + 'static>(
        &self,
        event: &str,
    ) -> Result<Subscriber<T>> {
        let topic = self.topic(event)?;
        Ok(Subscriber::new(self.namespace.runtime.event_plane().subscribe(&topic).await?))
    }

    fn topic(&self, event: &str) -> Result<Topic> {
        Ok(Topic {
            namespace: self.namespace.name.clone(),
            component: self.name.clone(),
            event: Name::new(event)?,
        })
    }
}
