//! A wire between a client and etcd that can be cut, go silent, or stop at a word of either.

use std::net::SocketAddr;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::task::JoinSet;

/// What becomes of the bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Mode {
    Open,
    /// Connections stay, and nothing passes.
    Silent,
    /// Connections end, and so do further ones.
    Cut,
    /// Open until etcd says the word.
    Trap(&'static str),
    /// etcd has said the word, and hears nothing until it is open again.
    Sprung,
    /// Open until the client says the word.
    Withhold(&'static str),
    /// The client has said the word; etcd has heard it, and its answers go nowhere.
    Withheld,
}

pub(crate) struct Proxy {
    address: SocketAddr,
    mode: watch::Sender<Mode>,
    connections: watch::Sender<usize>,
    _accepting: JoinSet<()>,
}

impl Proxy {
    pub(crate) async fn start(to: SocketAddr, mode: Mode) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let mode = watch::Sender::new(mode);
        let (mut accepting, connections) = (JoinSet::new(), watch::Sender::new(0));
        accepting.spawn(accept(listener, to, mode.clone(), connections.clone()));
        Self { address, mode, connections, _accepting: accepting }
    }

    pub(crate) fn url(&self) -> String {
        format!("http://{}", self.address)
    }

    pub(crate) fn set(&self, mode: Mode) {
        self.mode.send_replace(mode);
    }

    /// Waits until the trap has sprung.
    pub(crate) async fn sprung(&self) {
        self.mode.subscribe().wait_for(|mode| *mode == Mode::Sprung).await.unwrap();
    }

    /// Ends all connections that there are, and further ones.
    pub(crate) async fn cut(&self) {
        self.set(Mode::Cut);
        self.connections.subscribe().wait_for(|count| *count == 0).await.unwrap();
    }

    /// Waits until an answer is withheld.
    pub(crate) async fn withheld(&self) {
        self.mode.subscribe().wait_for(|mode| *mode == Mode::Withheld).await.unwrap();
    }
}

async fn accept(
    listener: TcpListener,
    to: SocketAddr,
    mode: watch::Sender<Mode>,
    count: watch::Sender<usize>,
) {
    let mut connections = JoinSet::new();
    loop {
        let (client, _) = listener.accept().await.unwrap();
        if *mode.borrow() == Mode::Cut {
            continue;
        }
        let (mode, count) = (mode.clone(), count.clone());
        count.send_modify(|count| *count += 1);
        connections.spawn(async move {
            let _ended = Ended(count);
            let Ok(server) = TcpStream::connect(to).await else { return };
            let (from_client, to_client) = client.into_split();
            let (from_server, to_server) = server.into_split();
            // Dropping the one ends the other.
            tokio::select! {
                () = up(from_client, to_server, mode.clone()) => {}
                () = down(from_server, to_client, mode.clone()) => {}
                () = cut(mode.subscribe()) => {}
            }
        });
    }
}

/// Counts a connection down that has ended.
struct Ended(watch::Sender<usize>);

impl Drop for Ended {
    fn drop(&mut self) {
        self.0.send_modify(|count| *count -= 1);
    }
}

async fn cut(mut mode: watch::Receiver<Mode>) {
    let _ = mode.wait_for(|mode| *mode == Mode::Cut).await;
}

async fn up(mut from: OwnedReadHalf, mut to: OwnedWriteHalf, mode: watch::Sender<Mode>) {
    let mut bytes = vec![0; 4096];
    while let Ok(count @ 1..) = from.read(&mut bytes).await {
        let said = &bytes[..count];
        mode.send_if_modified(|mode| match mode {
            Mode::Withhold(word) if contains(said, word.as_bytes()) => {
                *mode = Mode::Withheld;
                true
            }
            _ => false,
        });
        let stops = |mode: &Mode| matches!(mode, Mode::Silent | Mode::Cut | Mode::Sprung);
        let passes = mode.subscribe().wait_for(|mode| !stops(mode)).await.is_ok();
        if !passes || to.write_all(said).await.is_err() {
            return;
        }
    }
}

async fn down(mut from: OwnedReadHalf, mut to: OwnedWriteHalf, mode: watch::Sender<Mode>) {
    let mut bytes = vec![0; 4096];
    while let Ok(count @ 1..) = from.read(&mut bytes).await {
        let said = &bytes[..count];
        mode.send_if_modified(|mode| match mode {
            Mode::Trap(word) if contains(said, word.as_bytes()) => {
                *mode = Mode::Sprung;
                true
            }
            _ => false,
        });
        let mut mode = mode.subscribe();
        let passes = mode.wait_for(|mode| !matches!(mode, Mode::Silent | Mode::Withheld));
        let passes = passes.await.is_ok();
        if !passes || to.write_all(said).await.is_err() {
            return;
        }
    }
}

fn contains(said: &[u8], word: &[u8]) -> bool {
    said.windows(word.len()).any(|part| part == word)
}
