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
use super::owner::{Delivery, Owner};
use super::port::{MESSAGE_ID, Port};
use super::protocol::{ADDRESS_BYTES_MAX, Header, Kind};
use super::sys::{self, EndpointHandle, Status};
use super::worker::Worker;
use crate::endpoint::Endpoint;
use crate::error::{Error, ErrorKind, Result};

pub(super) struct Engine {
    initiator: Initiator,
    owner: Owner,
    port: Port,
    mailbox: Arc<Mailbox>,
    letters: Letters,
}

impl Engine {
    /// Starts UCX on the calling thread; returns its address too.
    pub(super) fn new(
        config: &UcxConfig,
        endpoint: &Arc<Endpoint>,
        deliveries: mpsc::Sender<Delivery>,
        (mailbox, letters): (Arc<Mailbox>, Letters),
    ) -> Result<(Self, Vec<u8>)> {
        let library = Library::open(&config.library)?;
        let inbox = Inbox::new(library.functions().ucp_request_free);
        let settings = config.messages();
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
        let engine = Self {
            initiator: Initiator::new(Arc::clone(endpoint), address.clone()),
            owner: Owner::new(Arc::clone(endpoint), deliveries),
            port: Port::new(worker, inbox),
            mailbox,
            letters,
        };
        Ok((engine, address))
    }

    /// Works until the agent stops it; then closes everything, within a bound.
    pub(super) fn run(mut self) {
        while !self.mailbox.is_stopped() {
            let mut is_busy = self.port.progress();
            is_busy |= self.take_events();
            is_busy |= self.take_commands();
            is_busy |= self.port.pump();
            if is_busy {
                continue;
            }
            let wake_at = self.expire();
            match self.port.worker.arm() {
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

    fn take_events(&mut self) -> bool {
        let mut any = false;
        for _ in 0..EVENTS_PER_TURN {
            let Some(event) = self.port.inbox.pop() else { return any };
            any = true;
            match event {
                Event::Control(header, body) => self.control(header, body),
                Event::Filled(key, is_right) => self.filled(key, is_right),
                Event::Sent(id, status) => self.sent(id, status),
                Event::Failed(handle, status) => self.failed(handle, status),
            }
        }
        any
    }

    fn control(&mut self, header: Header, body: Vec<u8>) {
        let port = &mut self.port;
        match header.kind {
            Kind::Hello => self.owner.hello(port, header, &body),
            Kind::Welcome => self.initiator.welcome(port, header, &body),
            Kind::Request => self.owner.request(port, header, &body),
            Kind::Accept => self.initiator.accept(port, header),
            Kind::Done => self.initiator.done(port, header, &body),
            Kind::Cancel => self.owner.cancel(port, header),
            Kind::Notify => self.owner.notify(port, header, body),
            Kind::Grant | Kind::Release | Kind::ReadData | Kind::WriteData => {}
        }
    }

    fn filled(&mut self, key: OpKey, is_right: bool) {
        match key.side {
            Side::Initiator => self.initiator.filled(&mut self.port, key, is_right),
            Side::Owner => self.owner.filled(&mut self.port, key, is_right),
        }
    }

    fn sent(&mut self, id: u64, status: Status) {
        let Some(sent) = self.port.sent(id, status) else { return };
        if sent.op.side == Side::Owner {
            self.owner.supplied(sent.op);
        }
    }

    fn failed(&mut self, handle: EndpointHandle, status: Status) {
        let Some(id) = self.port.endpoint(handle) else { return };
        let why = self.port.worker.library().error(status, "the UCX endpoint failed");
        let port = &mut self.port;
        if !self.initiator.failed(port, id, &why) && !self.owner.failed(port, id) {
            port.close(id);
        }
    }

    fn take_commands(&mut self) -> bool {
        let mut any = false;
        for op in self.mailbox.take_cancelled() {
            any = true;
            self.initiator.cancel(&mut self.port, op);
        }
        for _ in 0..COMMANDS_PER_TURN {
            let Some(command) = self.letters.next() else { return any };
            any = true;
            let port = &mut self.port;
            match command {
                Command::Run { op, operation, done } if !done.is_closed() => {
                    self.initiator.run(port, op, *operation, done);
                }
                Command::Notify { op, peer, payload, done } if !done.is_closed() => {
                    self.initiator.notify(port, op, &peer, (payload, done));
                }
                Command::Delivered { link, op, status } => {
                    self.owner.delivered(port, link, op, &status);
                }
                // Nobody waits for it any more.
                Command::Run { .. } | Command::Notify { .. } => {}
            }
        }
        any
    }

    fn expire(&mut self) -> Option<Instant> {
        let now = Instant::now();
        let initiator = self.initiator.expire(&mut self.port, now);
        let owner = self.owner.expire(&mut self.port, now);
        [initiator, owner].into_iter().flatten().min()
    }

    /// Waits for the worker, for the agent, or until then.
    fn sleep(&self, wake_at: Option<Instant>) {
        if self.mailbox.fall_asleep(&self.letters) {
            let patience = wake_at.map(|at| at.saturating_duration_since(Instant::now()));
            if let Ok(fd) = self.port.worker.event_fd() {
                wait([fd, self.letters.fd()], patience);
            }
        }
        self.mailbox.wake_up(&self.letters);
    }

    /// Ends what is under way and tells peers, as far as they listen.
    fn close(mut self) {
        self.initiator.close(&mut self.port);
        self.port.close_all();
        let until = Instant::now() + CLOSE_MAX;
        while self.port.is_draining() && Instant::now() < until {
            let moved = self.port.progress();
            while let Some(event) = self.port.inbox.pop() {
                if let Event::Sent(id, status) = event {
                    self.port.sent(id, status);
                }
            }
            if !moved && matches!(self.port.worker.arm(), Ok(true)) {
                self.sleep(Some(until));
            }
        }
    }
}

/// Waits until one of the descriptors is readable, or for `patience`.
fn wait(fds: [i32; 2], patience: Option<Duration>) {
    let mut fds = fds.map(|fd| libc::pollfd { fd, events: libc::POLLIN, revents: 0 });
    // Rounded up: waking early would only mean to wait again.
    let patience = patience.map_or(-1, |patience| {
        i32::try_from(patience.as_millis().saturating_add(1)).unwrap_or(i32::MAX)
    });
    // SAFETY: two entries, and both descriptors are open: they are the worker's and the mailbox's.
    // An interruption counts as waking up.
    unsafe { libc::poll(fds.as_mut_ptr(), 2, patience) };
}

/// After so many, UCX and the agent get their turn.
const EVENTS_PER_TURN: usize = 256;
const COMMANDS_PER_TURN: usize = 64;

/// Peers that are alive let an endpoint close at once; those that are not must not hold the agent.
const CLOSE_MAX: Duration = Duration::from_secs(2);
