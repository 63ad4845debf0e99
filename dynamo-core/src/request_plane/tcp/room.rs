use std::collections::HashMap;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use super::super::remote::{Connection, lock};
use crate::error::{Error, Result};

/// The connections that a server has accepted: so many at once, and the one that has been idle
/// longest gives way.
pub(super) struct Room {
    places: Arc<Semaphore>,
    guests: Mutex<Guests>,
    /// Held by the newcomer for whom someone is to leave: one asks at a time.
    asking: tokio::sync::Mutex<()>,
}

#[derive(Default)]
struct Guests {
    next: u64,
    connections: HashMap<u64, Connection>,
}

/// A place; given back when it is dropped.
pub(super) struct Place {
    room: Arc<Room>,
    _permit: OwnedSemaphorePermit,
    guest: Option<u64>,
}

impl Room {
    pub(super) fn new(places: usize) -> Self {
        let (places, asking) = (Arc::new(Semaphore::new(places)), tokio::sync::Mutex::default());
        Self { places, guests: Mutex::default(), asking }
    }

    /// Waits for a place. Without one, who has been idle longest is asked to leave; if nobody is
    /// idle, that is as soon as somebody is.
    pub(super) async fn enter(self: &Arc<Self>) -> Result<Place> {
        let permit = Arc::clone(&self.places).acquire_owned();
        tokio::pin!(permit);
        let permit = tokio::select! {
            biased;
            permit = &mut permit => permit,
            // Whoever leaves makes room for the first who waits.
            () = self.ask() => permit.await,
        };
        let _permit = permit.map_err(|_| Error::internal("the room is closed"))?;
        Ok(Place { room: Arc::clone(self), _permit, guest: None })
    }

    /// Asks somebody to leave, once somebody is idle.
    async fn ask(&self) {
        let _asking = self.asking.lock().await;
        while !self.idlest().is_some_and(|guest| guest.leave_if_idle()) {
            tokio::time::sleep(ASK_EVERY).await;
        }
    }

    fn idlest(&self) -> Option<Connection> {
        let guests = lock(&self.guests);
        let idle = guests.connections.values();
        let idle = idle.filter_map(|guest| guest.idle_since().map(|since| (since, guest)));
        idle.min_by_key(|(since, _)| *since).map(|(_, guest)| guest.clone())
    }
}

impl Place {
    /// Lets `guest` have the place: it may be asked to leave.
    pub(super) fn seat(&mut self, guest: &Connection) {
        let mut guests = lock(&self.room.guests);
        let id = guests.next;
        guests.next += 1;
        guests.connections.insert(id, guest.clone());
        self.guest = Some(id);
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        if let Some(guest) = self.guest {
            lock(&self.room.guests).connections.remove(&guest);
        }
    }
}

/// Nobody says that a connection has become idle; one newcomer at a time looks for it.
const ASK_EVERY: Duration = Duration::from_millis(50);
