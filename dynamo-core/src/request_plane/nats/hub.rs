use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard};

use async_nats::connection::State;
use async_nats::{Client, Message, StatusCode, Subscriber};
use futures::{FutureExt, StreamExt};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::super::remote::{Bound, Connection, Counters, FLUSH_MAX, Shares, Stage, answer, lock};
use super::Published;
use super::socket::{End, Outlet, Reader, Writer};
use super::subject::Subjects;
use crate::error::{Error, ErrorKind, Result};
use crate::protocol::InstanceId;
use crate::wire::codec::Codec;
use crate::wire::link::{self, Datagram, Link};
use crate::wire::session::{Limits, Session};

/// The links of a process, and the task that hands out what arrives for them.
pub(super) struct Hub {
    subjects: Subjects,
    client: Client,
    limits: Limits,
    codec: Codec,
    links: Arc<Links>,
    room: Arc<Semaphore>,
    bound: Arc<Bound>,
    shares: Arc<Shares>,
    counters: Arc<Counters>,
    published: Arc<Published>,
    tasks: TaskTracker,
    shutdown: CancellationToken,
}

/// The ends of links in this process, by their numbers; accepted ones by the peer's as well.
#[derive(Default)]
pub(super) struct Links(Mutex<Known>);

#[derive(Default)]
struct Known {
    ends: HashMap<u64, Wired>,
    accepted: HashMap<u64, Wired>,
}

/// A link and what it carries.
#[derive(Clone)]
struct Wired {
    end: Arc<End>,
    connection: Connection,
}

impl Wired {
    /// Takes in a datagram. The last one that has arrived is worked on at once where it is for one
    /// stream: one task less has to be woken.
    fn receive(&self, datagram: Datagram, is_last: bool) {
        self.end.receive(datagram);
        if !(is_last && self.connection.drive_alone()) {
            self.end.wake();
        }
    }
}

impl Links {
    fn lock(&self) -> MutexGuard<'_, Known> {
        lock(&self.0)
    }

    /// Repeats what NATS may have lost while it was away.
    pub(super) fn on_reconnect(&self) {
        let ends: Vec<_> = self.lock().ends.values().cloned().collect();
        ends.iter().for_each(|link| link.end.on_reconnect());
    }
}

impl Hub {
    pub(super) fn new(
        subjects: Subjects,
        client: Client,
        (limits, codec): (Limits, Codec),
        links: Arc<Links>,
        (bound, shares): (&Arc<Bound>, Arc<Shares>),
        shutdown: CancellationToken,
    ) -> Self {
        Self {
            subjects,
            client,
            limits,
            codec,
            links,
            room: Arc::new(Semaphore::new(LINKS_MAX)),
            bound: Arc::clone(bound),
            shares,
            counters: Arc::default(),
            published: Arc::default(),
            tasks: TaskTracker::new(),
            shutdown,
        }
    }

    pub(super) fn subjects(&self) -> &Subjects {
        &self.subjects
    }

    pub(super) fn codec(&self) -> Codec {
        self.codec
    }

    pub(super) fn counters(&self) -> &Counters {
        &self.counters
    }

    pub(super) fn published(&self) -> &Published {
        &self.published
    }

    pub(super) fn is_connected(&self) -> bool {
        self.client.connection_state() == State::Connected
    }

    /// Waits until NATS has what was published.
    pub(super) async fn flush(&self) {
        // Who does not hear it notices by silence.
        let _ = tokio::time::timeout(FLUSH_MAX, self.client.flush()).await;
    }

    /// Hands out what arrives, until the plane has shut down and the last link has ended.
    pub(super) async fn receive(
        self: Arc<Self>,
        mut datagrams: Subscriber,
        mut absences: Subscriber,
    ) {
        let ended = async {
            self.shutdown.cancelled().await;
            self.tasks.close();
            self.tasks.wait().await;
        };
        tokio::pin!(ended);
        loop {
            tokio::select! {
                Some(first) = datagrams.next() => {
                    let mut message = Some(first);
                    while let Some(next) = message {
                        message = datagrams.next().now_or_never().flatten();
                        self.on_datagram(next, message.is_none());
                    }
                }
                Some(message) = absences.next() => self.on_absence(&message),
                () = &mut ended => return,
            }
        }
    }

    fn on_datagram(self: &Arc<Self>, message: Message, is_last: bool) {
        let sender = message.reply.as_ref().and_then(|reply| self.subjects.link(reply));
        match Datagram::decode(message.payload) {
            Ok(Datagram::Open { from }) => match sender {
                Some((process, link)) if link == from => self.on_open(process, from),
                _ => tracing::debug!("link asked for by nobody"),
            },
            Ok(datagram) => {
                let Some(to) = datagram.to() else { return };
                let link = self.links.lock().ends.get(&to).cloned();
                match (link, sender) {
                    (Some(link), _) => link.receive(datagram, is_last),
                    // Not answered by a word that would be answered in turn.
                    (None, _) if matches!(datagram, Datagram::Closed { .. }) => {}
                    (None, Some((process, link))) => self.refuse(process, link, to),
                    (None, None) => {}
                }
            }
            Err(error) => tracing::debug!(%error, "message ignored"),
        }
    }

    /// Takes in that nobody listened to a datagram.
    fn on_absence(&self, message: &Message) {
        if message.status != Some(StatusCode::NO_RESPONDERS) {
            return;
        }
        if let Some((_, link)) = self.subjects.link(&message.subject) {
            let known = self.links.lock().ends.get(&link).cloned();
            if let Some(link) = known {
                link.end.on_absent();
            }
        }
    }

    fn on_open(self: &Arc<Self>, process: u64, from: u64) {
        let known = self.links.lock().accepted.get(&from).cloned();
        if let Some(link) = known {
            link.receive(Datagram::Open { from }, false);
            return;
        }
        let permit = Arc::clone(&self.room).try_acquire_owned();
        let Some(permit) = permit.ok().filter(|_| !self.shutdown.is_cancelled()) else {
            self.refuse(process, from, 0);
            return;
        };
        let (own, now) = (InstanceId::random().0, Instant::now().into_std());
        let end = End::new(Link::accept(own, from, self.link_limits(), now));
        let session = Session::server(self.limits.clone(), now);
        let accepted = Some((from, permit));
        self.drive((own, end), process, session, self.shutdown.clone(), accepted);
    }

    /// Tells a peer that there is no link `from`, without waiting.
    fn refuse(&self, process: u64, to: u64, from: u64) {
        let datagram = Datagram::Closed { to, from }.encode();
        let told = self.client.publish(self.subjects.of(process), datagram);
        if told.now_or_never().is_none() {
            tracing::debug!("too much waits for NATS: a refusal is not told");
        }
    }

    /// Makes a link to `process`; dropped before it is open, it goes no further.
    pub(super) async fn connect(self: &Arc<Self>, process: u64) -> Result<Connection> {
        if self.shutdown.is_cancelled() {
            return Err(Error::new(ErrorKind::Closed, "the plane has shut down"));
        }
        let (own, now) = (InstanceId::random().0, Instant::now().into_std());
        let end = End::new(Link::connect(own, self.link_limits(), now));
        let session = Session::client(self.limits.clone(), self.codec, now);
        let shutdown = self.shutdown.child_token();
        let given_up = shutdown.clone().drop_guard();
        let connection = self.drive((own, end), process, session, shutdown, None);
        match connection.greeted().await {
            Stage::Open => {
                given_up.disarm();
                Ok(connection)
            }
            _ => Err(Error::new(ErrorKind::Unavailable, "nobody answers there")),
        }
    }

    /// Drives a session over a link in a task of its own.
    fn drive(
        self: &Arc<Self>,
        (own, end): (u64, Arc<End>),
        process: u64,
        session: Session,
        shutdown: CancellationToken,
        accepted: Option<(u64, OwnedSemaphorePermit)>,
    ) -> Connection {
        let connection = Connection::new(session, Arc::clone(&self.counters));
        let link = Wired { end: Arc::clone(&end), connection: connection.clone() };
        {
            let mut known = self.links.lock();
            if let Some((from, _)) = &accepted {
                known.accepted.insert(*from, link.clone());
            }
            known.ends.insert(own, link);
        }
        let outlet = Outlet {
            end,
            client: self.client.clone(),
            subject: self.subjects.of(process).into(),
            absence: self.subjects.absence(own).into(),
            published: Arc::clone(&self.published),
        };
        let share = accepted.as_ref().map(|_| connection.share(&self.shares));
        let halves = (Reader::new(outlet.clone()), Writer(outlet.clone()));
        let (bound, own_end, tasks) =
            (Arc::clone(&self.bound), connection.clone(), self.tasks.clone());
        let driven = connection.clone().drive(halves, shutdown, move |arrival| {
            tasks.spawn(answer(own_end.clone(), arrival, Arc::clone(&bound)));
        });
        let links = Arc::clone(&self.links);
        self.tasks.spawn(async move {
            driven.await;
            drop(share);
            let mut rest = Reader::new(outlet);
            let _ = tokio::time::timeout(FLUSH_MAX, rest.flush()).await;
            rest.close().await;
            let mut known = links.lock();
            known.ends.remove(&own);
            if let Some((from, permit)) = accepted {
                known.accepted.remove(&from);
                drop(permit);
            }
        });
        connection
    }

    fn link_limits(&self) -> link::Limits {
        let usual = link::Limits::default();
        let payload_max = match self.client.max_payload() {
            0 => usual.datagram_bytes_max,
            bytes => bytes,
        };
        link::Limits {
            datagram_bytes_max: usual.datagram_bytes_max.min(payload_max),
            dead_after: self.limits.dead_after,
            ..usual
        }
    }
}

/// Links that peers may ask for: a few per process of a large fleet; each costs a task.
const LINKS_MAX: usize = 1024;
