use std::any::{Any, type_name};
use std::fmt;
use std::marker::PhantomData;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;

use bytes::Bytes;
use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::engine::{Context, DynEngine, Engine, ResponseStream, SharedEngine};
use crate::error::{Error, Result};
use crate::wire::codec::{Codec, Encoder};

/// What a request or an item of an answer is: something that can cross a process boundary, and be
/// sent again.
pub trait Message: Serialize + DeserializeOwned + Clone + Send + 'static {}

impl<T: Serialize + DeserializeOwned + Clone + Send + 'static> Message for T {}

/// The entrance to an endpoint.
#[derive(Clone)]
pub struct Ingress(Entrance);

#[derive(Clone)]
enum Entrance {
    /// An engine of this process: by types, and by encoded messages of each codec.
    Local {
        /// A `SharedEngine<Req, Resp>`, and the names of its types.
        typed: (Arc<dyn Any + Send + Sync>, [&'static str; 2]),
        encoded: Arc<[(Codec, SharedEngine<Bytes, Bytes>)]>,
    },
    /// An engine of another process, by encoded messages.
    Remote(SharedEngine<Bytes, Bytes>, Codec),
}

impl Ingress {
    /// Wraps an engine of this process.
    pub fn new<Req: Message, Resp: Message>(engine: SharedEngine<Req, Resp>) -> Self {
        let encoded = |codec: &Codec| -> (Codec, SharedEngine<Bytes, Bytes>) {
            (*codec, Arc::new(Encoded { engine: Arc::clone(&engine), codec: *codec }))
        };
        let encoded = Codec::ALL.iter().map(encoded).collect();
        let typed: Arc<dyn Any + Send + Sync> = Arc::new(engine);
        Self(Entrance::Local { typed: (typed, [type_name::<Req>(), type_name::<Resp>()]), encoded })
    }

    /// Wraps an engine of another process, reached by messages that `codec` encodes.
    pub fn remote(encoded: SharedEngine<Bytes, Bytes>, codec: Codec) -> Self {
        Self(Entrance::Remote(encoded, codec))
    }

    /// Tells whether the engine is in another process: it holds nothing here then.
    pub(crate) fn is_remote(&self) -> bool {
        matches!(self.0, Entrance::Remote(..))
    }

    /// Returns the engine by messages that `codec` encodes.
    ///
    /// Fails with [`InvalidArgument`](crate::ErrorKind::InvalidArgument) if it is in another process
    /// and reached by another codec.
    pub fn encoded(&self, codec: Codec) -> Result<&SharedEngine<Bytes, Bytes>> {
        let found = match &self.0 {
            Entrance::Local { encoded, .. } => {
                encoded.iter().find(|(its, _)| *its == codec).map(|(_, engine)| engine)
            }
            Entrance::Remote(engine, its) => (*its == codec).then_some(engine),
        };
        found.ok_or_else(|| Error::invalid(format!("the engine does not speak {codec:?}")))
    }

    /// Returns the engine by types: values are moved if it is in this process, and encoded if not.
    ///
    /// Fails with [`InvalidArgument`](crate::ErrorKind::InvalidArgument), naming both, if the
    /// engine is known to take or give other types.
    pub fn engine<Req: Message, Resp: Message>(&self) -> Result<SharedEngine<Req, Resp>> {
        match &self.0 {
            Entrance::Remote(encoded, codec) => {
                let (encoded, codec) = (Arc::clone(encoded), *codec);
                Ok(Arc::new(Decoded { encoded, codec, types: PhantomData }))
            }
            Entrance::Local { typed: (engine, [request, response]), .. } => {
                engine.downcast_ref::<SharedEngine<Req, Resp>>().cloned().ok_or_else(|| {
                    let (req, resp) = (type_name::<Req>(), type_name::<Resp>());
                    Error::invalid(format!(
                        "endpoint takes {request} and gives {response}, the client was made for \
                         {req} and {resp}",
                    ))
                })
            }
        }
    }
}

impl fmt::Debug for Ingress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.0 {
            Entrance::Local { typed, .. } => f.debug_tuple("Ingress").field(&typed.1).finish(),
            Entrance::Remote(_, codec) => f.debug_tuple("Ingress").field(codec).finish(),
        }
    }
}

/// An engine of this process, by encoded messages.
struct Encoded<Req, Resp> {
    engine: SharedEngine<Req, Resp>,
    codec: Codec,
}

impl<Req: Message, Resp: Message> Engine for Encoded<Req, Resp> {
    type Request = Bytes;
    type Response = Bytes;

    async fn generate(&self, ctx: Context, request: Bytes) -> Result<ResponseStream<Bytes>> {
        let request = caught("decoding the request", || self.codec.decode(request))?;
        let items = self.engine.generate_dyn(ctx, request).await?;
        let mut encoder = Encoder::new(self.codec);
        Ok(items.map(move |item| caught("encoding an item", || encoder.encode(&item))))
    }
}

/// Runs the code of a message's type; a panic there fails one request.
fn caught<T>(what: &str, run: impl FnOnce() -> Result<T>) -> Result<T> {
    let run = catch_unwind(AssertUnwindSafe(run));
    run.unwrap_or_else(|payload| Err(Error::panicked(what, &*payload)))
}

/// An engine of another process, by types.
struct Decoded<Req, Resp> {
    encoded: SharedEngine<Bytes, Bytes>,
    codec: Codec,
    types: PhantomData<fn(Req) -> Resp>,
}

impl<Req: Message, Resp: Message> Engine for Decoded<Req, Resp> {
    type Request = Req;
    type Response = Resp;

    async fn generate(&self, ctx: Context, request: Req) -> Result<ResponseStream<Resp>> {
        let codec = self.codec;
        let request = codec.encode(&request)?;
        let items = self.encoded.generate_dyn(ctx, request).await?;
        Ok(items.map(move |item| codec.decode(item)))
    }
}
