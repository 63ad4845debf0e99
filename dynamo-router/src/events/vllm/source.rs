//! Connections to a publisher: dialled, or accepted.

use std::time::Duration;

use dynamo_core::random::Random;
use dynamo_core::{Error, ErrorKind, Result};
use tokio::net::{TcpListener, TcpStream};
use tokio::time::{sleep, timeout};

use super::config::{Place, VllmConfig};
use super::zmtp::{Connection, Limits, Peer, Role};

/// Where connections come from.
#[derive(Debug)]
pub(super) enum Source {
    Dial(Place),
    Listen(TcpListener),
}

impl Source {
    /// Tells whether publishers may come at any time.
    pub(super) fn is_listening(&self) -> bool {
        matches!(self, Self::Listen(_))
    }
}

/// Connects, or is connected to, however often that fails; `tries` were in vain before.
pub(super) async fn next_connection(
    source: &Source,
    config: &VllmConfig,
    mut tries: u32,
) -> Connection {
    let mut random = Random::unseeded();
    let role = Role::Subscriber(&config.topic);
    loop {
        if tries > 0 {
            sleep(random.back_off(BACK_OFF_MIN, tries - 1, BACK_OFF_MAX)).await;
        }
        let connection = match source {
            Source::Dial(place) => dial(place, role, config).await,
            Source::Listen(listener) => accept(listener, role, config).await,
        };
        match connection {
            Ok(connection) => return connection,
            Err(error) if tries == 0 => {
                tracing::warn!(publisher = config.endpoint, %error, "no KV events of vLLM");
            }
            Err(error) => {
                tracing::debug!(publisher = config.endpoint, %error, "no KV events of vLLM");
            }
        }
        tries = tries.saturating_add(1);
    }
}

/// Connects to whoever listens at `place`.
pub(super) async fn dial(place: &Place, role: Role<'_>, config: &VllmConfig) -> Result<Connection> {
    let connect = async {
        Ok::<Box<dyn Peer>, std::io::Error>(match place {
            Place::Tcp(address) => {
                let stream = TcpStream::connect(address).await?;
                stream.set_nodelay(true)?;
                Box::new(stream)
            }
            #[cfg(unix)]
            Place::Ipc(path) => Box::new(tokio::net::UnixStream::connect(path).await?),
            #[cfg(not(unix))]
            Place::Ipc(_) => return Err(std::io::ErrorKind::Unsupported.into()),
        })
    };
    let unreached = |what: &str| Error::new(ErrorKind::Unavailable, what);
    let peer = timeout(config.answer_max, connect)
        .await
        .map_err(|_| unreached("connecting takes too long"))?
        .map_err(|source| unreached("nobody is to be reached").with_source(source))?;
    Connection::open(peer, role, limits(config)).await
}

async fn accept(listener: &TcpListener, role: Role<'_>, config: &VllmConfig) -> Result<Connection> {
    let (stream, _) = listener.accept().await.map_err(|source| {
        Error::new(ErrorKind::Unavailable, "no connection comes in").with_source(source)
    })?;
    Connection::open(Box::new(stream), role, limits(config)).await
}

fn limits(config: &VllmConfig) -> Limits {
    Limits {
        message_bytes: config.message_bytes_max,
        handshake: config.answer_max,
        heartbeat: config.heartbeat,
    }
}

const BACK_OFF_MIN: Duration = Duration::from_millis(100);
const BACK_OFF_MAX: Duration = Duration::from_secs(5);
