//! The calling side of an endpoint: who is there, who is picked, one call.

mod counts;
mod least_loaded;
mod picker;
mod power_of_two;
mod random;
mod round_robin;

use std::fmt;
use std::marker::PhantomData;
use std::sync::Arc;
use std::time::Duration;

use futures::StreamExt;
use tokio::sync::watch;

pub use least_loaded::LeastLoaded;
pub use picker::{Pick, Picker};
pub use power_of_two::PowerOfTwo;
pub use random::RandomPicker;
pub use round_robin::RoundRobin;

use crate::discovery::{Instance, View};
use crate::engine::{Context, Engine, ResponseStream};
use crate::error::{Error, ErrorKind, Result};
use crate::name::EndpointPath;
use crate::protocol::InstanceId;
use crate::request_plane::Message;
use crate::runtime::Runtime;

/// Calls the instances of one endpoint; itself an [`Engine`].
///
/// Cheap to clone. Each call goes to at most one instance, at most once.
pub struct Client<Req, Resp> {
    runtime: Runtime,
    endpoint: EndpointPath,
    instances: watch::Receiver<Arc<[Instance]>>,
    picker: Arc<dyn Picker<Req>>,
    types: PhantomData<fn(Req) -> Resp>,
}

impl<Req: Message, Resp: Message> Client<Req, Resp> {
    /// Starts to watch `endpoint`; returns once the first list of instances is known, or fails
    /// with [`Unavailable`](ErrorKind::Unavailable) if discovery gives none.
    pub(crate) async fn connect(runtime: &Runtime, endpoint: EndpointPath) -> Result<Self> {
        let mut changes = runtime.discovery().watch(&endpoint).await?;
        let mut view = View::default();
        match tokio::time::timeout(FIRST_LIST_MAX, changes.next()).await {
            Ok(Some(change)) => view.apply(change),
            _ => {
                let message = format!("discovery gave no list of {endpoint}");
                return Err(Error::new(ErrorKind::Unavailable, message).unprocessed());
            }
        }
        let (sender, instances) = watch::channel(view.instances());
        runtime.spawn(async move {
            loop {
                let change = tokio::select! {
                    () = sender.closed() => return,
                    change = changes.next() => change,
                };
                // The directory has ended: the last good set stays.
                let Some(change) = change else { return sender.closed().await };
                view.apply(change);
                sender.send_replace(view.instances());
            }
        });
        let picker = Arc::new(RoundRobin::default());
        Ok(Self { runtime: runtime.clone(), endpoint, instances, picker, types: PhantomData })
    }

    /// Chooses instances by `picker` instead of in turn.
    #[must_use]
    pub fn with_picker(mut self, picker: impl Picker<Req>) -> Self {
        self.picker = Arc::new(picker);
        self
    }

    /// Returns the endpoint that is called.
    pub fn endpoint(&self) -> &EndpointPath {
        &self.endpoint
    }

    /// Returns the instances known at this moment, ordered by id.
    pub fn instances(&self) -> Arc<[Instance]> {
        Arc::clone(&self.instances.borrow())
    }

    /// Waits until at least one instance is known, for `patience` at most
    /// ([`Unavailable`](ErrorKind::Unavailable)).
    ///
    /// # Cancel safety
    /// Cancel safe.
    pub async fn wait_ready(&self, patience: Duration) -> Result<()> {
        self.wait_for(1, patience).await
    }

    /// Waits until at least `count` instances are known, for `patience` at most
    /// ([`Unavailable`](ErrorKind::Unavailable)).
    ///
    /// # Cancel safety
    /// Cancel safe.
    pub async fn wait_for(&self, count: usize, patience: Duration) -> Result<()> {
        let mut instances = self.instances.clone();
        let ready = instances.wait_for(|instances| instances.len() >= count);
        match tokio::time::timeout(patience, ready).await {
            Ok(Ok(_)) => Ok(()),
            _ => {
                let (endpoint, known) = (&self.endpoint, self.instances().len());
                let message = format!("{known} of {count} instances serve {endpoint}");
                Err(Error::new(ErrorKind::Unavailable, message).unprocessed())
            }
        }
    }

    /// Sends `request` to one given instance.
    ///
    /// Fails with a retryable [`Unavailable`](ErrorKind::Unavailable) if it is not there, and with
    /// whatever the instance answers.
    ///
    /// # Cancel safety
    /// Dropping the future, or the stream it returns, cancels the work at the instance.
    pub async fn direct(
        &self,
        instance: InstanceId,
        ctx: Context,
        request: Req,
    ) -> Result<ResponseStream<Resp>> {
        let instances = self.instances();
        let known = instances.iter().find(|known| known.id == instance).ok_or_else(|| {
            let message = format!("instance {instance} of {} is not known", self.endpoint);
            Error::new(ErrorKind::Unavailable, message).unprocessed()
        })?;
        // A context of its own: this call ends without ending the caller's whole request.
        let ctx = ctx.child();
        let on_drop = KillOnDrop(Some(ctx.clone()));
        let ingress = ctx.bound(self.runtime.request_plane().dial(known)).await?;
        let stream = ingress.engine::<Req, Resp>()?.generate(ctx, request).await?;
        on_drop.disarm();
        Ok(stream)
    }

    fn no_instance(&self) -> Error {
        let message = format!("no instance serves {}", self.endpoint);
        Error::new(ErrorKind::Unavailable, message).unprocessed()
    }
}

impl<Req: Message, Resp: Message> Engine for Client<Req, Resp> {
    type Request = Req;
    type Response = Resp;

    async fn generate(&self, ctx: Context, request: Req) -> Result<ResponseStream<Resp>> {
        let instances = self.instances();
        if instances.is_empty() {
            return Err(self.no_instance());
        }
        let pick = self.picker.pick(&ctx, &request, &instances)?;
        let (instance, guard) = pick.into_parts();
        Ok(self.direct(instance, ctx, request).await?.with_guard(guard))
    }
}

impl<Req, Resp> Clone for Client<Req, Resp> {
    fn clone(&self) -> Self {
        Self {
            runtime: self.runtime.clone(),
            endpoint: self.endpoint.clone(),
            instances: self.instances.clone(),
            picker: Arc::clone(&self.picker),
            types: PhantomData,
        }
    }
}

impl<Req, Resp> fmt::Debug for Client<Req, Resp> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Client").field("endpoint", &self.endpoint).finish_non_exhaustive()
    }
}

/// A directory that answers gives its list at once.
const FIRST_LIST_MAX: Duration = Duration::from_secs(10);

/// Kills a call whose future is dropped before it has a stream.
struct KillOnDrop(Option<Context>);

impl KillOnDrop {
    fn disarm(mut self) {
        self.0 = None;
    }
}

impl Drop for KillOnDrop {
    fn drop(&mut self) {
        if let Some(ctx) = &self.0 {
            ctx.kill();
        }
    }
}
