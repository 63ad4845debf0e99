use std::future::poll_fn;
use std::sync::Arc;
use std::task::Context;
use std::time::Duration;

use bytes::Bytes;
use rustix::net::Shutdown;
use tokio::net::{UnixListener, UnixStream};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::message::{REQUEST_BYTES_MAX, Request, encode_answer, encode_welcome};
use super::opened::{FILES_MAX, Opened, PIECES_MAX};
use super::page::Page;
use super::slots::Slots;
use super::socket::{Inbox, send};
use super::{Secret, host, socket_path};
use crate::backend::connection::{self, IDLE_MAX, broken};
use crate::descriptor::Ranges;
use crate::error::{Error, ErrorKind, Result};
use crate::inbound::Inbound;
use crate::memory::{Lease, Right, SharedFile, Token, random};
use crate::peer::ShmAddress;
use crate::wire::{HELLO_BYTES_MAX, Hello, protocol};

/// Lets peers on this host reach an agent's regions.
pub(crate) struct ShmServer {
    inbound: Arc<Inbound>,
    secret: Secret,
    shutdown: CancellationToken,
}

impl ShmServer {
    /// Listens, and returns where.
    pub(crate) fn start(
        inbound: &Arc<Inbound>,
        tasks: &TaskTracker,
        shutdown: &CancellationToken,
    ) -> Result<ShmAddress> {
        Self::start_with(Secret::new()?, inbound, tasks, shutdown)
    }

    pub(super) fn start_with(
        secret: Secret,
        inbound: &Arc<Inbound>,
        tasks: &TaskTracker,
        shutdown: &CancellationToken,
    ) -> Result<ShmAddress> {
        let unavailable = || Error::new(ErrorKind::BackendUnavailable, "cannot share memory");
        let host = host().ok_or_else(unavailable)?;
        let socket = random()?;
        let listener = UnixListener::bind(socket_path(socket));
        let listener = listener.map_err(|error| unavailable().with_source(error))?;
        let inbound = Arc::clone(inbound);
        let server = Arc::new(Self { inbound, secret, shutdown: shutdown.clone() });
        let accept = move |cx: &mut Context<'_>| listener.poll_accept(cx);
        connection::accept(tasks, shutdown, accept, move |(stream, _)| {
            Arc::clone(&server).serve(stream)
        });
        Ok(ShmAddress { host, socket })
    }

    async fn serve(self: Arc<Self>, stream: UnixStream) {
        if let Err(error) = self.converse(&stream).await {
            let peer = stream.peer_cred().ok().and_then(|peer| peer.pid());
            tracing::debug!(%error, ?peer, "transfer connection ended");
        }
    }

    async fn converse(&self, stream: &UnixStream) -> Result<()> {
        let mut inbox = Inbox::default();
        let hello = inbox.message(stream, HELLO_BYTES_MAX, false);
        let hello = tokio::select! {
            () = self.shutdown.cancelled() => return Ok(()),
            hello = connection::hello(hello) => hello?,
        };
        let hello = Request::decode(&hello).and_then(|hello| meant(hello, &self.inbound));
        let (Hello { name, incarnation, .. }, opens) = match hello {
            Ok(hello) => hello,
            Err(error) => return answer(stream, Err(error)).await,
        };
        let welcome = encode_answer(Ok(encode_welcome(&self.secret.proof())));
        if !opens {
            send(stream, &welcome, &[]).await?;
            return tokio::select! {
                () = self.shutdown.cancelled() => Ok(()),
                ended = self.take_notifications(stream, inbox, &name, incarnation) => ended,
            };
        }
        let (page, file) = Page::create().map_err(|error| {
            Error::new(ErrorKind::Overloaded, "no page to share").with_source(error)
        })?;
        send(stream, &welcome, &[file.as_fd(true)]).await?;
        let mut slots = Slots::new(page);
        let ended = tokio::select! {
            () = self.shutdown.cancelled() => Ok(()),
            ended = self.lend(stream, &mut inbox, &mut slots) => ended,
        };
        self.retire(stream, &slots).await;
        ended
    }

    async fn take_notifications(
        &self,
        stream: &UnixStream,
        mut inbox: Inbox,
        name: &str,
        incarnation: u64,
    ) -> Result<()> {
        loop {
            let message = inbox.message(stream, REQUEST_BYTES_MAX, false);
            let message = tokio::time::timeout(IDLE_MAX, message).await.map_err(|_| idle())??;
            let Request::Notify(payload) = Request::decode(&message)? else {
                return answer(stream, Err(protocol("not a notification"))).await;
            };
            let delivered = self.inbound.deliver(name.to_owned(), incarnation, payload).await;
            answer(stream, delivered.map(|()| Bytes::new())).await?;
        }
    }

    /// Opens and closes regions, as the peer asks, and ends what expires.
    async fn lend(&self, stream: &UnixStream, inbox: &mut Inbox, slots: &mut Slots) -> Result<()> {
        loop {
            let expiry = slots.next_expiry();
            let message = tokio::select! {
                message = inbox.message(stream, REQUEST_BYTES_MAX, false) => message?,
                () = tokio::time::sleep_until(expiry.unwrap_or_else(Instant::now)),
                    if expiry.is_some() =>
                {
                    slots.expire(Instant::now());
                    continue;
                }
                () = tokio::time::sleep(IDLE_MAX), if slots.is_empty() => return Err(idle()),
            };
            match Request::decode(&message) {
                Ok(Request::Open { region, token, right, takes_addresses }) => {
                    let opened = self.open(slots, (region, &token), right, takes_addresses);
                    let (opened, files) = match opened {
                        Ok((opened, files)) => (Ok(opened.encode()), files),
                        Err(error) => (Err(error), Vec::new()),
                    };
                    let files = files.iter().map(|file| file.as_fd(right == Right::Write));
                    let files: Vec<_> = files.collect();
                    send(stream, &encode_answer(opened), &files).await?;
                }
                Ok(Request::Close { slot }) => slots.close(slot)?,
                Ok(_) => return answer(stream, Err(protocol("not for this connection"))).await,
                Err(error) => return answer(stream, Err(error)).await,
            }
        }
    }

    fn open(
        &self,
        slots: &mut Slots,
        (region, token): (u64, &Token),
        right: Right,
        takes_addresses: bool,
    ) -> Result<(Opened, Vec<Arc<SharedFile>>)> {
        let regions = &self.inbound.regions;
        let lease = regions.lease_remote(region, token, right, &Ranges::unchecked([]))?;
        let (mut opened, files) = describe(&lease);
        let can_reach = takes_addresses || !files.is_empty();
        if !can_reach || opened.pieces.len() > PIECES_MAX {
            let message = format!("region {region} cannot be shared with this peer");
            return Err(Error::new(ErrorKind::BackendUnavailable, message));
        }
        opened.slot = slots.open(regions, (region, token), lease)?;
        Ok((opened, files))
    }

    /// Revokes what the peer has open, and waits until it copies nothing: it has closed its end then,
    /// or its process has ended. As long as it does neither, what it copies stays leased; if this
    /// agent ends meanwhile, for good.
    async fn retire(&self, stream: &UnixStream, slots: &Slots) {
        if !slots.revoke() {
            // Fails if the peer is gone.
            let _ = rustix::net::shutdown(stream, Shutdown::Write);
            let given_up = async {
                self.shutdown.cancelled().await;
                tokio::time::sleep(QUARANTINE_MAX).await;
            };
            tokio::select! {
                () = ended(stream) => {}
                () = given_up => return,
            }
        }
        slots.release();
    }
}

/// Says where the bytes of a region are: in files if all of them are in a few, else at addresses.
fn describe(lease: &Lease) -> (Opened, Vec<Arc<SharedFile>>) {
    let parts = lease.memory().parts().filter(|(span, _)| span.len() > 0);
    let parts: Vec<_> = parts.collect();
    let (mut files, mut pieces) = (Vec::<Arc<SharedFile>>::new(), Vec::new());
    for (span, part) in &parts {
        let Some(part) = part else { break };
        let known = files.iter().position(|file| Arc::ptr_eq(file, part));
        let index = known.unwrap_or(files.len());
        if known.is_none() && index == FILES_MAX {
            break;
        }
        if known.is_none() {
            files.push(Arc::clone(part));
        }
        pieces.push((index as u64, span.len() as u64));
    }
    if pieces.len() < parts.len() {
        files.clear();
        let address = |ptr: *mut u8| ptr.expose_provenance() as u64;
        let at = parts.iter().map(|(span, _)| (address(span.as_ptr()), span.len() as u64));
        pieces = at.collect();
    }
    let lens = files.iter().map(|file| file.len() as u64).collect();
    (Opened { slot: 0, files: lens, pieces }, files)
}

/// Waits for the end of a connection, whatever else comes, and however much.
async fn ended(stream: &UnixStream) {
    let mut scratch = [0; 512];
    // Others have their turn between two looks.
    while poll_fn(|cx| stream.poll_read_ready(cx)).await.is_ok() {
        match stream.try_read(&mut scratch) {
            Ok(0) => return,
            Ok(_) => {}
            Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => {}
            Err(_) => return,
        }
    }
}

/// Checks that the peer means this very agent; tells whether it opens regions.
fn meant(hello: Request, inbound: &Inbound) -> Result<(Hello, bool)> {
    let Request::Hello { hello, opens } = hello else {
        return Err(protocol("connection without a hello"));
    };
    inbound.check(&hello).map(|()| (hello, opens))
}

async fn answer(stream: &UnixStream, answer: Result<Bytes>) -> Result<()> {
    send(stream, &encode_answer(answer), &[]).await
}

fn idle() -> Error {
    broken(std::io::ErrorKind::TimedOut.into())
}

/// How long an agent that ends waits for a copy: it takes microseconds, unless its process is stopped.
const QUARANTINE_MAX: Duration = Duration::from_secs(5);
