use std::os::fd::OwnedFd;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use bytes::BytesMut;
use tokio::net::UnixStream;
use tokio::sync::{Notify, mpsc, oneshot};

use super::cma::Process;
use super::message::{ANSWER_BYTES_MAX, Request, decode_answer, decode_welcome};
use super::opened::Opened;
use super::page::{Entered, Page};
use super::socket::{Inbox, send};
use super::socket_path;
use crate::backend::connection::{STALL_MAX, within};
use crate::error::{Error, ErrorKind, Result};
use crate::inbound::Inbound;
use crate::peer::{PeerAddress, ShmAddress};

/// A control connection to an owner. Whoever copies holds it: the owner takes its end for the end of
/// all copies.
pub(super) struct Link {
    stream: UnixStream,
    /// Absent where no regions are opened.
    page: Option<Page>,
    /// The owner's process, if its memory may be reached.
    process: Option<Process>,
    asks: mpsc::Sender<Ask>,
    closed: Mutex<Vec<u32>>,
    /// Something is closed, or is to be: a copy has left what is revoked.
    has_ended: Notify,
    is_over: AtomicBool,
}

/// Something to ask, and who wants to know.
pub(super) struct Ask {
    request: Request,
    settle: oneshot::Sender<Result<Answer>>,
}

/// An answer, and the files that came with it.
pub(super) type Answer = (BytesMut, Vec<OwnedFd>);

impl Link {
    /// Connects to an owner. What is asked has to be taken out and [driven](Self::drive).
    pub(super) async fn connect(
        own: &Inbound,
        peer: &PeerAddress,
        address: ShmAddress,
        opens: bool,
    ) -> Result<(Self, mpsc::Receiver<Ask>)> {
        let unreachable = |error| {
            let message = "the peer cannot be connected to on this host";
            Error::new(ErrorKind::Unreachable, message).with_source(error)
        };
        let stream = UnixStream::connect(socket_path(address.socket));
        let stream = within(CONNECT_MAX, stream).await.map_err(unreachable)?;
        let hello = Request::Hello { hello: own.hello(peer), opens };
        send(&stream, &hello.encode(), &[]).await?;
        let mut inbox = Inbox::default();
        let welcome = inbox.message(&stream, ANSWER_BYTES_MAX, true);
        let welcome = tokio::time::timeout(CONNECT_MAX, welcome).await.map_err(|_| silent())??;
        let proof = decode_welcome(decode_answer(&welcome)?)?;
        let page = inbox.files(usize::from(opens))?.pop().map(Page::of).transpose();
        let page = page.map_err(|error| {
            Error::new(ErrorKind::Protocol, "the peer's page cannot be used").with_source(error)
        })?;
        // As the socket was made: a process that is not seen from here has none.
        let pid = stream.peer_cred().ok().and_then(|peer| peer.pid()).filter(|pid| *pid > 0);
        let process = pid.map(|pid| Process::new(pid, proof)).filter(|_| opens);
        if let Some(Err(error)) = &process {
            tracing::debug!(%error, peer = peer.name, "memory is reached only where it is shared");
        }
        let (asks, asked) = mpsc::channel(ASKED_MAX);
        let (closed, has_ended) = (Mutex::default(), Notify::new());
        let process = process.and_then(Result::ok);
        let is_over = AtomicBool::new(false);
        Ok((Self { stream, page, process, asks, closed, has_ended, is_over }, asked))
    }

    /// Asks the owner.
    pub(super) async fn ask(&self, request: Request) -> Result<Answer> {
        let (settle, answer) = oneshot::channel();
        let gone = || Error::new(ErrorKind::Disconnected, "the owner has left");
        self.asks.send(Ask { request, settle }).await.map_err(|_| gone())?;
        answer.await.map_err(|_| gone())?
    }

    /// Passes on what is asked until the connection ends, or `is_unused` says so when nothing has
    /// been asked for long. `give_up` closes what is revoked, soon after a copy has left it.
    pub(super) async fn drive(
        &self,
        mut asked: mpsc::Receiver<Ask>,
        is_unused: impl Fn() -> bool,
        give_up: impl Fn(),
    ) -> Result<()> {
        let mut inbox = Inbox::default();
        loop {
            tokio::select! {
                ask = asked.recv() => match ask {
                    Some(ask) => self.pass(ask, &mut inbox).await?,
                    None => return Ok(()),
                },
                () = self.has_ended.notified() => {
                    give_up();
                    let closed = std::mem::take(&mut *self.closed());
                    for slot in closed {
                        send(&self.stream, &Request::Close { slot }.encode(), &[]).await?;
                    }
                }
                // Nothing was asked: only the end can come.
                message = inbox.message(&self.stream, ANSWER_BYTES_MAX, false) => {
                    let message = message?;
                    decode_answer(&message)?;
                    return Err(Error::new(ErrorKind::Protocol, "an answer to nothing"));
                }
                () = tokio::time::sleep(IDLE_MAX) => if is_unused() {
                    return Ok(());
                },
            }
        }
    }

    async fn pass(&self, ask: Ask, inbox: &mut Inbox) -> Result<()> {
        send(&self.stream, &ask.request.encode(), &[]).await?;
        let answer = inbox.message(&self.stream, ANSWER_BYTES_MAX, true);
        let answer = tokio::time::timeout(STALL_MAX, answer).await.map_err(|_| silent())??;
        let content = match decode_answer(&answer) {
            Ok(content) => BytesMut::from(content),
            Err(refusal) => {
                // Whoever asked may be gone.
                let _ = ask.settle.send(Err(refusal));
                return Ok(());
            }
        };
        let is_open = matches!(ask.request, Request::Open { .. });
        let files = if is_open { Opened::decode(&content)?.files.len() } else { 0 };
        let answer = (content, inbox.files(files)?);
        if let Err(Ok((content, _))) = ask.settle.send(Ok(answer))
            && is_open
        {
            self.close(Opened::decode(&content)?.slot);
        }
        Ok(())
    }

    /// Tells the owner that a slot is used no more.
    pub(super) fn close(&self, slot: u32) {
        // As many as there are slots at most.
        self.closed().push(slot);
        self.has_ended.notify_one();
    }

    /// Notes that the owner is gone, or the connection is given up.
    pub(super) fn end(&self) {
        self.is_over.store(true, Ordering::Release);
    }

    pub(super) fn is_over(&self) -> bool {
        self.is_over.load(Ordering::Acquire)
    }

    /// Begins a copy; `None` if the slot is revoked.
    pub(super) fn enter(&self, slot: u32) -> Result<Option<Entered<'_>>> {
        let page = self.page.as_ref();
        let page = page.ok_or_else(|| Error::new(ErrorKind::Internal, "a link without a page"))?;
        Ok(page.enter(slot, &self.has_ended))
    }

    /// Tells whether copies may begin, as far as is known.
    pub(super) fn is_open(&self, slot: u32) -> bool {
        !self.is_over() && self.page.as_ref().is_some_and(|page| !page.is_revoked(slot))
    }

    pub(super) fn process(&self) -> Option<&Process> {
        self.process.as_ref()
    }

    #[cfg(test)]
    pub(super) fn stream(&self) -> &UnixStream {
        &self.stream
    }

    fn closed(&self) -> MutexGuard<'_, Vec<u32>> {
        self.closed.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn silent() -> Error {
    Error::new(ErrorKind::Disconnected, "the peer does not answer")
}

/// A process on this host that is not stopped answers within this.
const CONNECT_MAX: Duration = Duration::from_secs(3);

/// Half of what an owner waits, so that a link in use is not closed at that moment.
const IDLE_MAX: Duration = Duration::from_secs(30);

/// Requests that wait behind the one being answered; those beyond wait with whoever asks.
const ASKED_MAX: usize = 16;
