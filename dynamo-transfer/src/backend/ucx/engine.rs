//! The one thread that touches UCX: it sleeps until the worker or the agent has something for it.

#![expect(unsafe_code, reason = "waiting for two descriptors")]

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::mpsc;
use tokio::time::Instant;

use super::config::UcxConfig;
use super::inbox::{Event, Inbox, OpKey, Side};
use super::initiator::Initiator;
use super::library::Library;
use super::mailbox::{Command, Letters, Mailbox};
use super::net::Net;
use super::owner::{Delivery, Owner};
use super::port::{MESSAGE_ID, Port};
use super::protocol::{ADDRESS_BYTES_MAX, Header, Kind};
use super::rails::Rails;
use super::sys::{self, EndpointHandle, Status};
use super::worker::Worker;
use crate::error::{Error, ErrorKind, Result};
use crate::inbound::Inbound;

pub(super) struct Engine {
    initiator: Initiator,
    owner: Owner,
    net: Net,
    mailbox: Arc<Mailbox>,
    letters: Letters,
    turns: u32,
}

/// What comes after a turn of the thread.
enum Turn {
    Again,
    /// There is nothing to do until UCX or the agent says so, or until then.
    Rest(Option<Instant>),
}

impl Engine {
    /// Starts UCX on the calling thread; returns its address too.
    pub(super) fn new(
        config: &UcxConfig,
        inbound: &Arc<Inbound>,
        deliveries: mpsc::Sender<Delivery>,
        (mailbox, letters): (Arc<Mailbox>, Letters),
    ) -> Result<(Self, Vec<u8>)> {
        let library = Library::open(&config.library)?;
        let inbox = Inbox::new(library.functions().ucp_request_free);
        let settings = config.messages(&library);
        let worker = Worker::new(&library, sys::FEATURE_AM, &settings, &inbox)?;
        worker.listen(MESSAGE_ID)?;
        let address = worker.address()?;
        if address.len() > ADDRESS_BYTES_MAX {
            let message = format!("UCX address of {} bytes: limit its devices", address.len());
            return Err(Error::new(ErrorKind::BackendUnavailable, message));
        }
        tracing::debug!(
            version = %library.version(),
            is_degraded = library.is_degraded(),
            "UCX started"
        );
        if library.may_abort() {
            tracing::warn!(
                version = %library.version(),
                "this UCX may abort the process when a peer is killed in a transfer; 1.22 was not seen to"
            );
        }
        let engine = Self {
            initiator: Initiator::new(Arc::clone(inbound), address.clone()),
            owner: Owner::new(Arc::clone(inbound), deliveries),
            net: Net { port: Port::new(worker, inbox), rails: Rails::start(config, &library) },
            mailbox,
            letters,
            turns: 0,
        };
        Ok((engine, address))
    }

    /// Works until the agent stops it; then closes everything, within a bound.
    pub(super) fn run(mut self) {
        while !self.mailbox.is_stopped() {
            let Turn::Rest(wake_at) = self.turn(Instant::now) else { continue };
            match self.arm() {
                Ok(true) => self.sleep(wake_at),
                Ok(false) => {}
                Err(error) => {
                    tracing::error!(%error, "UCX cannot wait for events");
                    break;
                }
            }
        }
        self.close();
    }

    /// Does what there is to do, and tells whether that was all.
    fn turn(&mut self, now: impl Fn() -> Instant) -> Turn {
        let mut is_busy = self.net.progress();
        is_busy |= self.take_events() | self.take_rail_events();
        is_busy |= self.take_commands();
        is_busy |= self.initiator.begin_due(&mut self.net);
        is_busy |= self.net.port.pump();
        self.turns = self.turns.wrapping_add(1);
        // Also a thread that never rests has peers that are overdue.
        if is_busy && !self.turns.is_multiple_of(TURNS_PER_LOOK) {
            return Turn::Again;
        }
        let wake_at = self.expire(now());
        // Giving up sends and closes, and UCX may call back meanwhile: nothing would wake for that.
        if is_busy || self.has_more() { Turn::Again } else { Turn::Rest(wake_at) }
    }

    /// Tells whether what was just done has made something to do.
    fn has_more(&mut self) -> bool {
        self.net.has_events() || self.initiator.has_due()
    }

    fn take_events(&mut self) -> bool {
        let mut any = false;
        for _ in 0..EVENTS_PER_TURN {
            let Some(event) = self.net.port.inbox.pop() else { return any };
            any = true;
            match event {
                Event::Control(header, body) => self.control(header, body),
                Event::Filled(key, status) => self.filled(key, status),
                Event::Sent(id) => self.sent(id),
                // There are no accesses on this port.
                Event::Landed(_) => {}
                Event::Failed(handle, status) => self.failed(handle, status),
            }
        }
        any
    }

    fn take_rail_events(&mut self) -> bool {
        let mut landed = Vec::new();
        for (_, port) in self.net.rails.each() {
            while let Some(event) = port.inbox.pop() {
                match event {
                    Event::Landed(key) => landed.push(key),
                    Event::Failed(handle, _) => {
                        if let Some(id) = port.endpoint(handle) {
                            port.close(id);
                        }
                    }
                    // Nobody is told of messages there.
                    Event::Control(..) | Event::Filled(..) | Event::Sent(_) => {}
                }
            }
        }
        let any = !landed.is_empty();
        landed.into_iter().for_each(|key| self.initiator.accessed(&mut self.net, key));
        any
    }

    fn arm(&self) -> Result<bool> {
        Ok(self.net.port.worker.arm()? && self.net.rails.arm()?)
    }

    fn control(&mut self, header: Header, body: Vec<u8>) {
        let net = &mut self.net;
        match header.kind {
            Kind::Hello => self.owner.hello(net, header, &body),
            Kind::Welcome => self.initiator.welcome(net, header, &body),
            Kind::Request => self.owner.request(net, header, &body),
            Kind::Accept => self.initiator.accept(net, header),
            Kind::Done => self.initiator.done(net, header, &body),
            Kind::Notify => self.owner.notify(net, header, body),
            Kind::Grant => self.initiator.grant(net, header, &body),
            Kind::Cancel | Kind::Release => self.owner.release(net, header),
            // Data never comes this way.
            Kind::ReadData | Kind::WriteData => {}
        }
    }

    fn filled(&mut self, key: OpKey, status: Result<()>) {
        match key.side {
            Side::Initiator => self.initiator.filled(&mut self.net, key, status),
            Side::Owner => self.owner.filled(&mut self.net, key, &status),
        }
    }

    fn sent(&mut self, id: u64) {
        let Some(op) = self.net.port.sent(id) else { return };
        if op.side == Side::Owner {
            self.owner.supplied(op);
        }
    }

    fn failed(&mut self, handle: EndpointHandle, status: Status) {
        let Some(id) = self.net.port.endpoint(handle) else { return };
        let why = self.net.port.worker.library().error(status, "the UCX endpoint failed");
        let net = &mut self.net;
        if !self.initiator.failed(net, id, &why) && !self.owner.failed(net, id) {
            net.port.close(id);
        }
    }

    fn take_commands(&mut self) -> bool {
        let mut any = false;
        for op in self.mailbox.take_cancelled() {
            any = true;
            self.initiator.cancel(&mut self.net, op);
        }
        for _ in 0..COMMANDS_PER_TURN {
            let Some(command) = self.letters.next() else { return any };
            any = true;
            let net = &mut self.net;
            match command {
                Command::Run { op, operation, done } if !done.is_closed() => {
                    self.initiator.run(net, op, operation, done);
                }
                Command::Notify { op, peer, payload, done } if !done.is_closed() => {
                    self.initiator.notify(net, op, &peer, (payload, done));
                }
                Command::Delivered { link, op, status } => {
                    self.owner.delivered(net, link, op, &status);
                }
                // Nobody waits for it any more.
                Command::Run { .. } | Command::Notify { .. } => {}
            }
        }
        any
    }

    fn expire(&mut self, now: Instant) -> Option<Instant> {
        let initiator = self.initiator.expire(&mut self.net, now);
        let owner = self.owner.expire(&mut self.net, now);
        [initiator, owner].into_iter().flatten().min()
    }

    /// Waits for the worker, for the agent, or until then.
    fn sleep(&self, wake_at: Option<Instant>) {
        if self.mailbox.fall_asleep(&self.letters) {
            let patience = wake_at.map(|at| at.saturating_duration_since(Instant::now()));
            let fd = self.net.port.worker.event_fd();
            let fds = fd.into_iter().chain(self.net.rails.event_fds()).chain([self.letters.fd()]);
            wait(fds, patience);
        }
        self.mailbox.wake_up(&self.letters);
    }

    /// Ends what is under way and tells peers, as far as they listen.
    fn close(mut self) {
        self.initiator.close(&mut self.net);
        // Peers that access memory are through with it before anybody can free it.
        let until = Instant::now() + CLOSE_MAX / 2;
        while self.owner.has_granted() && Instant::now() < until {
            self.work_until(until);
        }
        self.owner.abandon();
        self.net.port.close_all();
        self.net.rails.each().for_each(|(_, port)| port.close_all());
        let until = Instant::now() + CLOSE_MAX;
        while self.is_draining() && Instant::now() < until {
            self.work_until(until);
        }
    }

    /// Works on what is left, or waits for it.
    fn work_until(&mut self, until: Instant) {
        let mut is_busy = self.net.progress();
        is_busy |= self.take_events() | self.take_rail_events();
        let next = self.expire(Instant::now()).map_or(until, |next| next.min(until));
        if !is_busy && !self.has_more() && matches!(self.arm(), Ok(true)) {
            let patience = next.saturating_duration_since(Instant::now());
            let fd = self.net.port.worker.event_fd();
            wait(fd.into_iter().chain(self.net.rails.event_fds()), Some(patience));
        }
    }

    fn is_draining(&mut self) -> bool {
        self.net.port.is_draining() || self.net.rails.each().any(|(_, port)| port.is_draining())
    }
}

/// Waits until one of the descriptors is readable, or for `patience`.
fn wait(fds: impl Iterator<Item = i32>, patience: Option<Duration>) {
    let poll = |fd| libc::pollfd { fd, events: libc::POLLIN, revents: 0 };
    let mut fds: Vec<_> = fds.map(poll).collect();
    // Rounded up: waking early would only mean to wait again.
    let patience = patience.map_or(-1, |patience| {
        i32::try_from(patience.as_millis().saturating_add(1)).unwrap_or(i32::MAX)
    });
    // SAFETY: as many entries as there are, of descriptors that are open: they are the workers' and
    // the mailbox's. An interruption counts as waking up.
    unsafe { libc::poll(fds.as_mut_ptr(), fds.len() as libc::nfds_t, patience) };
}

const TURNS_PER_LOOK: u32 = 64;

/// After so many, UCX and the agent get their turn.
const EVENTS_PER_TURN: usize = 256;
const COMMANDS_PER_TURN: usize = 64;

/// Peers that are alive let an endpoint close at once; those that are not must not hold the agent.
const CLOSE_MAX: Duration = Duration::from_secs(2);

#[cfg(test)]
pub(super) mod tests;
