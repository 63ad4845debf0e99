use std::collections::HashMap;
use std::hash::Hash;
use std::sync::{Arc, Mutex};

use super::connection::Connection;
use super::{CONNECT_MAX, lock};
use crate::error::{Error, ErrorKind, Result};

/// The connections to peers: one each, made anew when it is gone.
pub(crate) struct Peers<K>(Mutex<HashMap<K, Peer>>);

/// Held while a connection is being made, so that it is made once.
type Peer = Arc<tokio::sync::Mutex<Option<Connection>>>;

impl<K> Default for Peers<K> {
    fn default() -> Self {
        Self(Mutex::default())
    }
}

impl<K: Eq + Hash> Peers<K> {
    /// Returns the connection to `peer` if there is one.
    pub(crate) fn known(&self, peer: &K) -> Option<Connection> {
        let peers = lock(&self.0);
        let known = peers.get(peer)?.try_lock().ok()?;
        known.as_ref().filter(|known| known.is_open()).cloned()
    }

    /// Returns the connection to `peer`, made by `connect` within [`CONNECT_MAX`].
    pub(crate) async fn connection(
        &self,
        peer: K,
        connect: impl Future<Output = Result<Connection>>,
    ) -> Result<Connection> {
        let peer = self.peer(peer);
        let connected = async {
            let mut known = peer.lock().await;
            if let Some(connection) = known.as_ref().filter(|known| known.is_open()) {
                return Ok(connection.clone());
            }
            let connection = connect.await?;
            *known = Some(connection.clone());
            Ok(connection)
        };
        tokio::time::timeout(CONNECT_MAX, connected).await.unwrap_or_else(|_| {
            Err(Error::new(ErrorKind::Unavailable, format!("no answer in {CONNECT_MAX:?}")))
        })
    }

    fn peer(&self, peer: K) -> Peer {
        let mut peers = lock(&self.0);
        // Peers come and go with discovery: what is gone is not kept.
        if peers.len() >= PEERS_TIDY {
            peers.retain(|_, peer| match peer.try_lock() {
                // Somebody may be about to make it.
                Ok(known) => {
                    Arc::strong_count(peer) > 1 || known.as_ref().is_some_and(Connection::is_open)
                }
                Err(_) => true,
            });
        }
        Arc::clone(peers.entry(peer).or_default())
    }
}

/// Peers beyond which those that are gone are looked for.
const PEERS_TIDY: usize = 64;
