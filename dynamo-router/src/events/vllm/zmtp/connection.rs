//! One connection to a peer: the handshake, then messages, with signs of life.

use std::fmt;
use std::time::Duration;

use dynamo_core::{Error, ErrorKind, Result};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::time::timeout;

use super::frame::{
    GREETING_BYTES, Inbox, Received, check_greeting, greeting, property, write_command,
    write_message, write_property,
};

/// What bytes go over.
pub(in crate::events::vllm) trait Peer:
    AsyncRead + AsyncWrite + Send + Unpin
{
}

impl<T: AsyncRead + AsyncWrite + Send + Unpin> Peer for T {}

/// What we are to the peer.
#[derive(Debug, Clone, Copy)]
pub(in crate::events::vllm) enum Role<'a> {
    /// Hears what is published on topics that begin so.
    Subscriber(&'a str),
    /// Sends and receives as it likes.
    Dealer,
}

/// Bounds on what a peer may do.
#[derive(Debug, Clone, Copy)]
pub(in crate::events::vllm) struct Limits {
    pub(in crate::events::vllm) message_bytes: usize,
    pub(in crate::events::vllm) handshake: Duration,
    pub(in crate::events::vllm) heartbeat: Duration,
}

pub(in crate::events::vllm) struct Connection {
    peer: Box<dyn Peer>,
    inbox: Inbox,
    /// What is not written yet.
    outbox: Vec<u8>,
    chunk: Box<[u8]>,
    heartbeat: Duration,
    /// Whether the peer answers when asked for a sign of life.
    has_heartbeat: bool,
    /// How often it was asked since it was last heard.
    asked: u32,
}

impl Connection {
    /// Greets the peer; it has to be what `role` is made for.
    pub(in crate::events::vllm) async fn open(
        peer: Box<dyn Peer>,
        role: Role<'_>,
        limits: Limits,
    ) -> Result<Self> {
        let mut connection = Self {
            peer,
            inbox: Inbox::new(limits.message_bytes),
            outbox: Vec::new(),
            chunk: vec![0; CHUNK_BYTES].into_boxed_slice(),
            heartbeat: limits.heartbeat,
            has_heartbeat: false,
            asked: 0,
        };
        let handshake = timeout(limits.handshake, connection.shake_hands(role)).await;
        handshake.map_err(|_| broken("the peer does not greet"))??;
        Ok(connection)
    }

    /// Appends a message to what will be written while waiting for the next one.
    pub(in crate::events::vllm) fn send(&mut self, parts: &[&[u8]]) {
        write_message(&mut self.outbox, parts);
    }

    /// Waits for the next message. Cancel safe.
    pub(in crate::events::vllm) async fn receive(&mut self) -> Result<Vec<Vec<u8>>> {
        loop {
            match self.next().await? {
                Received::Message(parts) => return Ok(parts),
                Received::Command { name, body } => self.obey(&name, &body)?,
            }
        }
    }

    async fn shake_hands(&mut self, role: Role<'_>) -> Result<()> {
        let mut theirs = [0; GREETING_BYTES];
        self.peer.write_all(&greeting()).await.map_err(lost)?;
        self.peer.read_exact(&mut theirs).await.map_err(lost)?;
        let minor = check_greeting(&theirs).map_err(|wrong| broken(wrong.what))?;
        self.has_heartbeat = minor > 0;

        let (ours, theirs): (_, &[&str]) = match role {
            Role::Subscriber(_) => ("SUB", &["PUB", "XPUB"]),
            Role::Dealer => ("DEALER", &["ROUTER", "REP", "DEALER"]),
        };
        let mut properties = Vec::new();
        write_property(&mut properties, "Socket-Type", ours);
        write_property(&mut properties, "Identity", "");
        write_command(&mut self.outbox, "READY", &properties);
        let socket = self.ready().await?;
        if !theirs.iter().any(|theirs| theirs.as_bytes() == socket) {
            let socket = String::from_utf8_lossy(&socket);
            return Err(broken(format!("a {socket} is no peer of a {ours}")));
        }
        match role {
            Role::Subscriber(topic) if minor > 0 => {
                write_command(&mut self.outbox, "SUBSCRIBE", topic.as_bytes());
            }
            Role::Subscriber(topic) => {
                write_message(&mut self.outbox, &[&[&[1], topic.as_bytes()].concat()]);
            }
            Role::Dealer => {}
        }
        self.flush().await
    }

    /// Waits until the peer is ready, and returns what socket it is.
    async fn ready(&mut self) -> Result<Vec<u8>> {
        loop {
            match self.next().await? {
                Received::Command { name, body } if name == b"READY" => {
                    return Ok(property(&body, "Socket-Type").unwrap_or_default().to_vec());
                }
                Received::Command { name, body } => self.obey(&name, &body)?,
                Received::Message(_) => return Err(broken("a message before the handshake's end")),
            }
        }
    }

    fn obey(&mut self, name: &[u8], body: &[u8]) -> Result<()> {
        match name {
            // Behind a time to live of two bytes, which is no concern of ours.
            b"PING" => {
                let context = body.get(2..).unwrap_or_default();
                let context = &context[..context.len().min(CONTEXT_BYTES_MAX)];
                // Who asks again before it has read the answer gets one all the same.
                if self.outbox.len() < CHUNK_BYTES {
                    write_command(&mut self.outbox, "PONG", context);
                }
                Ok(())
            }
            b"ERROR" => {
                let reason = String::from_utf8_lossy(body.get(1..).unwrap_or_default());
                Err(broken(format!("the peer refuses: {reason}")))
            }
            _ => Ok(()),
        }
    }

    async fn next(&mut self) -> Result<Received> {
        loop {
            if let Some(received) = self.inbox.next().map_err(|wrong| broken(wrong.what))? {
                return Ok(received);
            }
            match timeout(self.heartbeat, self.read_or_write()).await {
                Ok(done) => done?,
                Err(_) if !self.has_heartbeat => {}
                Err(_) if self.asked >= ASKED_MAX => return Err(broken("the peer is silent")),
                Err(_) => {
                    self.asked += 1;
                    write_command(&mut self.outbox, "PING", &[0, 0]);
                }
            }
        }
    }

    /// Moves some bytes one way. Cancel safe: what was moved is known.
    async fn read_or_write(&mut self) -> Result<()> {
        let Self { peer, outbox, chunk, .. } = self;
        if !outbox.is_empty() {
            let written = peer.write(outbox).await.map_err(lost)?;
            if written == 0 {
                return Err(broken("the connection takes nothing"));
            }
            outbox.drain(..written);
            return Ok(());
        }
        let read = peer.read(chunk).await.map_err(lost)?;
        if read == 0 {
            return Err(broken("the peer has closed"));
        }
        self.asked = 0;
        self.inbox.push(&self.chunk[..read]);
        Ok(())
    }

    async fn flush(&mut self) -> Result<()> {
        self.peer.write_all(&self.outbox).await.map_err(lost)?;
        self.outbox.clear();
        self.peer.flush().await.map_err(lost)
    }
}

impl fmt::Debug for Connection {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Connection").field("inbox", &self.inbox).finish_non_exhaustive()
    }
}

fn lost(source: std::io::Error) -> Error {
    broken("the connection is lost").with_source(source)
}

fn broken(what: impl Into<String>) -> Error {
    Error::new(ErrorKind::Unavailable, what)
}

const CHUNK_BYTES: usize = 64 << 10;

/// What a peer may have sent back with the sign of life that it asks for.
const CONTEXT_BYTES_MAX: usize = 16;

/// A peer is asked so often for a sign of life before it is given up.
const ASKED_MAX: u32 = 2;
