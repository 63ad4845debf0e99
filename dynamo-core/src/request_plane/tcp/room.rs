use std::collections::HashMap;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use tokio::sync::{Notify, OwnedSemaphorePermit, Semaphore};
use tokio::time::Instant;

use super::super::remote::{Connection, lock};
use crate::error::{Error, Result};

/// The connections that a server has accepted: so many at once, and the one that has been idle
/// longest gives way.
pub(super) struct Room {
    places: Arc<Semaphore>,
    guests: Mutex<Guests>,
    /// Told when a guest is idle, for whoever asks.
    on_idle: Arc<Notify>,
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
        Self { places, guests: Mutex::default(), on_idle: Arc::default(), asking }
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

    /// Asks somebody to leave, once somebody has been idle for a moment.
    async fn ask(&self) {
        let _asking = self.asking.lock().await;
        loop {
            let Some((since, guest)) = self.idlest() else {
                // What was told since the last wait ends this one at once.
                self.on_idle.notified().await;
                continue;
            };
            // Nobody else is idle sooner.
            tokio::time::sleep_until(since + PATIENCE).await;
            // Who has work again by now is passed over for the next.
            if guest.leave_if_idle(PATIENCE) {
                return;
            }
        }
    }

    fn idlest(&self) -> Option<(Instant, Connection)> {
        let guests = lock(&self.guests);
        let idle = guests.connections.values();
        let idle = idle.filter_map(|guest| guest.idle_since().map(|since| (since, guest)));
        let idlest = idle.min_by_key(|(since, _)| *since);
        idlest.map(|(since, guest)| (since, guest.clone()))
    }
}

impl Place {
    /// Lets `guest`, who has said hello, have the place: it may be asked to leave.
    pub(super) fn seat(&mut self, guest: &Connection) {
        let mut guests = lock(&self.room.guests);
        let id = guests.next;
        guests.next += 1;
        guests.connections.insert(id, guest.clone());
        self.guest = Some(id);
        guest.tell_idle(&self.room.on_idle);
        // It has no stream yet.
        self.room.on_idle.notify_one();
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        if let Some(guest) = self.guest {
            lock(&self.room.guests).connections.remove(&guest);
        }
    }
}

/// Who has just come in, or is between two requests, is not idle yet.
const PATIENCE: Duration = Duration::from_millis(100);

#[cfg(test)]
mod tests {
    use bytes::{Bytes, BytesMut};
    use tokio::sync::mpsc;
    use tokio::task::JoinSet;
    use tokio_util::sync::CancellationToken;

    use super::super::super::remote::Stage;
    use super::*;
    use crate::wire::codec::Codec;
    use crate::wire::head::Head;
    use crate::wire::session::{Limits, Session};

    /// The clock stands still as long as anybody has something to do.
    #[tokio::test(start_paused = true)]
    async fn who_waits_has_a_place_once_somebody_is_idle_for_a_moment() {
        let head = Head {
            instance: 1,
            incarnation: 0,
            endpoint: "n/c/e".into(),
            request: "r".into(),
            priority: 4,
            is_probe: false,
            trace: None,
            rank: None,
            remaining: None,
            metadata: Vec::new(),
        };
        let (room, limits, now) = (Arc::new(Room::new(1)), Limits::default(), Instant::now());
        for is_used in [false, true] {
            let mut server = Session::server(limits.clone(), now.into_std());
            let mut client = Session::client(limits.clone(), Codec::default(), now.into_std());
            let mut said = BytesMut::new();
            client.transmit(&mut said, 1 << 10);
            server.receive(&mut said, now.into_std()).unwrap();
            let [guest, client] =
                [server, client].map(|session| Connection::new(session, Arc::default()));
            let mut place = room.enter().await.unwrap();
            let mut entering = Box::pin(room.enter());
            assert!(futures::poll!(&mut entering).is_pending(), "nobody has a seat yet");
            place.seat(&guest);
            let (near, far) = tokio::io::duplex(1 << 10);
            let (near, far) = (tokio::io::split(near), tokio::io::split(far));
            let (arrived, mut arrivals) = mpsc::channel(1);
            let (own, mut tasks) = (guest.clone(), JoinSet::new());
            tasks.spawn(async move {
                let hand = move |arrival| drop(arrived.try_send(arrival));
                own.drive(near, CancellationToken::new(), hand).await;
                drop(place);
            });
            tasks.spawn(client.clone().drive(far, CancellationToken::new(), |_| {}));
            if is_used {
                assert_eq!(client.greeted().await, Stage::Open);
                let id = client.open(&head, Bytes::new()).unwrap();
                let arrival = arrivals.recv().await.unwrap();
                assert!(futures::poll!(&mut entering).is_pending(), "nobody is idle");
                guest.settle(arrival.stream, Ok(()));
                guest.flush();
                let mut none = Default::default();
                let end = std::future::poll_fn(|cx| client.poll_recv(id, &mut none, cx)).await;
                assert!(end.is_none(), "complete");
            }
            let before = Instant::now();
            entering.await.unwrap();
            let waited = before.elapsed();
            assert!((PATIENCE..PATIENCE * 2).contains(&waited), "{waited:?}");
            tasks.join_all().await;
        }
    }
}
