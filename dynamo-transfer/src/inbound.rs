//! The end of an agent that its peers reach.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use tokio::sync::mpsc;

use crate::backend::stage::Bounces;
use crate::error::{Error, ErrorKind, Result};
use crate::memory::RegionTable;
use crate::notify::Notification;
use crate::peer::PeerAddress;
use crate::wire::Hello;

/// What backends reach of an agent on behalf of its peers.
pub(crate) struct Inbound {
    pub(crate) name: String,
    pub(crate) incarnation: u64,
    pub(crate) regions: Arc<RegionTable>,
    /// What peers' operations on files and memory of devices pass through.
    pub(crate) bounces: Bounces,
    pub(crate) notifications: mpsc::Sender<Notification>,
}

impl Inbound {
    /// Returns what this agent says first to a peer.
    pub(crate) fn hello(&self, peer: &PeerAddress) -> Hello {
        Hello {
            target_name: peer.name.clone(),
            target_incarnation: peer.incarnation,
            name: self.name.clone(),
            incarnation: self.incarnation,
        }
    }

    /// Checks that a peer means this very agent.
    pub(crate) fn check(&self, hello: &Hello) -> Result<()> {
        let Hello { target_name, target_incarnation, .. } = hello;
        if *target_name == self.name && *target_incarnation == self.incarnation {
            return Ok(());
        }
        let message =
            format!("agent {target_name} of incarnation {target_incarnation:x} has ended");
        Err(Error::new(ErrorKind::StaleRegion, message))
    }

    /// Queues a notification, waiting a while if the queue is full.
    pub(crate) async fn deliver(
        &self,
        from: String,
        incarnation: u64,
        payload: Bytes,
    ) -> Result<()> {
        let notification = Notification { from, incarnation, payload };
        match self.notifications.send_timeout(notification, DELIVERY_MAX).await {
            Ok(()) => Ok(()),
            Err(mpsc::error::SendTimeoutError::Timeout(_)) => {
                let message = format!("notifications of agent {} are not read", self.name);
                Err(Error::new(ErrorKind::Overloaded, message))
            }
            Err(mpsc::error::SendTimeoutError::Closed(_)) => {
                let message = format!("agent {} takes no notifications any more", self.name);
                Err(Error::new(ErrorKind::Disconnected, message))
            }
        }
    }
}

/// A reader that is alive takes its notifications well within this.
const DELIVERY_MAX: Duration = Duration::from_secs(5);
