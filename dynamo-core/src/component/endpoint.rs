use std::fmt;
use std::marker::PhantomData;

use crate::client::Client;
use crate::engine::Engine;
use crate::error::Result;
use crate::name::EndpointPath;
use crate::request_plane::Message;
use crate::runtime::Runtime;
use crate::server::{self, Canary, ServeOptions, Serving};

/// One operation of a component: takes `Req`, answers with a stream of `Resp`; cheap to clone.
pub struct Endpoint<Req, Resp> {
    runtime: Runtime,
    path: EndpointPath,
    types: PhantomData<fn(Req) -> Resp>,
}

impl<Req: Message, Resp: Message> Endpoint<Req, Resp> {
    pub(super) fn new(runtime: Runtime, path: EndpointPath) -> Self {
        Self { runtime, path, types: PhantomData }
    }

    /// Returns the full path.
    pub fn path(&self) -> &EndpointPath {
        &self.path
    }

    /// Serves the endpoint as a new instance until the guard is dropped or drained.
    ///
    /// # Cancel safety
    /// Dropping the future serves nothing.
    pub async fn serve<E>(&self, engine: E) -> Result<Serving>
    where
        E: Engine<Request = Req, Response = Resp>,
    {
        self.serve_with(engine, ServeOptions::default()).await
    }

    /// Serves the endpoint as told by `options`.
    ///
    /// Fails with [`Conflict`](crate::ErrorKind::Conflict) if the instance serves it already.
    ///
    /// # Cancel safety
    /// Dropping the future serves nothing.
    pub async fn serve_with<E>(&self, engine: E, options: ServeOptions) -> Result<Serving>
    where
        E: Engine<Request = Req, Response = Resp>,
    {
        server::serve(&self.runtime, &self.path, engine, options, None).await
    }

    /// Serves the endpoint as told by `options`, listed as long as the engine answers `canary`.
    ///
    /// Fails like [`serve_with`](Self::serve_with).
    ///
    /// # Cancel safety
    /// Dropping the future serves nothing.
    pub async fn serve_watched<E>(
        &self,
        engine: E,
        options: ServeOptions,
        canary: Canary<Req>,
    ) -> Result<Serving>
    where
        E: Engine<Request = Req, Response = Resp>,
    {
        server::serve(&self.runtime, &self.path, engine, options, Some(canary)).await
    }

    /// Returns a client of all instances, which picks them in turn.
    ///
    /// # Cancel safety
    /// Cancel safe.
    pub async fn client(&self) -> Result<Client<Req, Resp>> {
        Client::connect(&self.runtime, self.path.clone()).await
    }
}

impl<Req, Resp> Clone for Endpoint<Req, Resp> {
    fn clone(&self) -> Self {
        Self { runtime: self.runtime.clone(), path: self.path.clone(), types: PhantomData }
    }
}

impl<Req, Resp> fmt::Debug for Endpoint<Req, Resp> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Endpoint").field("path", &self.path).finish_non_exhaustive()
    }
}
