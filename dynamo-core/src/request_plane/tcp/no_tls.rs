//! What stands for TLS where it is not built in: there is none.
#![expect(clippy::unused_async, reason = "the same signatures with TLS")]

use std::net::SocketAddr;
use std::sync::Arc;

use tokio::net::TcpStream;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::super::remote::Vouch;
use super::TcpConfig;
use crate::error::Result;
use crate::name::EndpointPath;
use crate::protocol::InstanceId;

pub(super) enum Tls {}

impl Tls {
    pub(super) async fn start(
        _: &TcpConfig,
        _: &TaskTracker,
        _: &CancellationToken,
    ) -> Result<Option<Arc<Self>>> {
        Ok(None)
    }

    pub(super) fn check_own(&self, _: &EndpointPath, _: InstanceId) -> Result<()> {
        match *self {}
    }

    pub(super) async fn connect(&self, _: TcpStream, _: SocketAddr) -> Result<(TcpStream, Vouch)> {
        match *self {}
    }

    pub(super) async fn accept(&self, _: TcpStream) -> Result<TcpStream> {
        match *self {}
    }
}
