use std::any::{Any, type_name};
use std::fmt;
use std::sync::Arc;

use crate::engine::SharedEngine;
use crate::error::{Error, Result};

/// The entrance to an endpoint: its engine, with the message types checked at run time.
#[derive(Clone)]
pub struct Ingress {
    /// Holds a `SharedEngine<Req, Resp>`.
    engine: Arc<dyn Any + Send + Sync>,
    types: [&'static str; 2],
}

impl Ingress {
    /// Wraps an engine of any message types.
    pub fn new<Req: 'static, Resp: 'static>(engine: SharedEngine<Req, Resp>) -> Self {
        Self { engine: Arc::new(engine), types: [type_name::<Req>(), type_name::<Resp>()] }
    }

    /// Returns the engine if it takes and gives these types, else
    /// [`InvalidArgument`](crate::ErrorKind::InvalidArgument) naming both.
    pub fn engine<Req: 'static, Resp: 'static>(&self) -> Result<SharedEngine<Req, Resp>> {
        self.engine.downcast_ref::<SharedEngine<Req, Resp>>().cloned().ok_or_else(|| {
            let [request, response] = self.types;
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
        f.debug_struct("Ingress").field("types", &self.types).finish_non_exhaustive()
    }
}
