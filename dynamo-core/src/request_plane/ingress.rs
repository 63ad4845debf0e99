use std::any::{Any, type_name};
use std::fmt;
use std::marker::PhantomData;
use std::sync::Arc;

use bytes::Bytes;
use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::engine::{Context, DynEngine, Engine, ResponseStream, SharedEngine};
use crate::error::{Error, Result};
use crate::wire::codec;

/// What a request or an item of an answer is: something that can cross a process boundary, and be
/// sent again.
pub trait Message: Serialize + DeserializeOwned + Clone + Send + 'static {}

impl<T: Serialize + DeserializeOwned + Clone + Send + 'static> Message for T {}

/// The entrance to an endpoint: its engine by types, by bytes, or by both.
#[derive(Clone)]
pub struct Ingress {
    /// A `SharedEngine<Req, Resp>` of this process, and the names of its types.
    typed: Option<(Arc<dyn Any + Send + Sync>, [&'static str; 2])>,
    encoded: SharedEngine<Bytes, Bytes>,
}

impl Ingress {
    /// Wraps an engine of this process.
    pub fn new<Req: Message, Resp: Message>(engine: SharedEngine<Req, Resp>) -> Self {
        let encoded = Arc::new(Encoded(Arc::clone(&engine)));
        Self { typed: Some((Arc::new(engine), [type_name::<Req>(), type_name::<Resp>()])), encoded }
    }

    /// Wraps an engine of another process, reached by encoded messages.
    pub fn remote(encoded: SharedEngine<Bytes, Bytes>) -> Self {
        Self { typed: None, encoded }
    }

    /// Returns the engine by encoded messages.
    pub fn encoded(&self) -> SharedEngine<Bytes, Bytes> {
        Arc::clone(&self.encoded)
    }

    /// Returns the engine by types: values are moved if it is in this process, and encoded if not.
    ///
    /// Fails with [`InvalidArgument`](crate::ErrorKind::InvalidArgument), naming both, if the
    /// engine is known to take or give other types.
    pub fn engine<Req: Message, Resp: Message>(&self) -> Result<SharedEngine<Req, Resp>> {
        let Some((engine, [request, response])) = &self.typed else {
            return Ok(Arc::new(Decoded { encoded: self.encoded(), types: PhantomData }));
        };
        engine.downcast_ref::<SharedEngine<Req, Resp>>().cloned().ok_or_else(|| {
            Error::invalid(format!(
                "endpoint takes {request} and gives {response}, the client was made for {} and {}",
                type_name::<Req>(),
                type_name::<Resp>(),
            ))
        })
    }
}

impl fmt::Debug for Ingress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let types = self.typed.as_ref().map(|(_, types)| types);
        f.debug_struct("Ingress").field("types", &types).finish_non_exhaustive()
    }
}

/// An engine of this process, by encoded messages.
struct Encoded<Req, Resp>(SharedEngine<Req, Resp>);

impl<Req: Message, Resp: Message> Engine for Encoded<Req, Resp> {
    type Request = Bytes;
    type Response = Bytes;

    async fn generate(&self, ctx: Context, request: Bytes) -> Result<ResponseStream<Bytes>> {
        let items = self.0.generate_dyn(ctx, codec::decode(&request)?).await?;
        let mut encoder = codec::Encoder::default();
        Ok(items.map(move |item| encoder.encode(&item)))
    }
}

/// An engine of another process, by types.
struct Decoded<Req, Resp> {
    encoded: SharedEngine<Bytes, Bytes>,
    types: PhantomData<fn(Req) -> Resp>,
}

impl<Req: Message, Resp: Message> Engine for Decoded<Req, Resp> {
    type Request = Req;
    type Response = Resp;

    async fn generate(&self, ctx: Context, request: Req) -> Result<ResponseStream<Resp>> {
        let request = codec::encode(&request)?;
        let items = self.encoded.generate_dyn(ctx, request).await?;
        Ok(items.map(|item| codec::decode(&item)))
    }
}
