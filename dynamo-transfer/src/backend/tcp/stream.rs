//! Moving bytes between a socket and leased memory, in place and within a bound per step.

use std::future::Future;
use std::io;
use std::time::Duration;

use bytes::BytesMut;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use crate::error::{Error, ErrorKind, Result};
use crate::memory::Lease;

/// Sends a frame.
pub(super) async fn send_frame(stream: &mut TcpStream, frame: &[u8]) -> Result<()> {
    within(STALL_MAX, stream.write_all(frame)).await
}

/// Receives the body of a frame of at most `bytes_max`, waiting `patience` for its length.
///
/// Memory grows with what arrives, not with what is announced.
pub(super) async fn recv_frame(
    stream: &mut TcpStream,
    bytes_max: usize,
    patience: Duration,
) -> Result<BytesMut> {
    let mut len = [0; 4];
    within(patience, stream.read_exact(&mut len)).await?;
    let len = u32::from_le_bytes(len) as usize;
    if len > bytes_max {
        let message = format!("frame of {len} bytes, at most {bytes_max}");
        return Err(Error::new(ErrorKind::Protocol, message));
    }
    let mut body = BytesMut::new();
    let mut frame = stream.take(len as u64);
    within(STALL_MAX, async {
        while body.len() < len {
            if frame.read_buf(&mut body).await? == 0 {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
        }
        Ok(())
    })
    .await?;
    Ok(body)
}

/// Sends `len` bytes of memory from `offset` on.
pub(super) async fn send_memory(
    stream: &TcpStream,
    memory: &Lease,
    mut offset: u64,
    mut len: u64,
) -> Result<()> {
    while len > 0 {
        within(STALL_MAX, stream.writable()).await?;
        let mut sent = Ok(0);
        memory.memory().with_bytes(offset, limit(len), &mut |bytes| sent = stream.try_write(bytes));
        let sent = progress(sent)?;
        offset += sent;
        len -= sent;
    }
    Ok(())
}

/// Receives `len` bytes into memory from `offset` on.
pub(super) async fn recv_memory(
    stream: &TcpStream,
    memory: &Lease,
    mut offset: u64,
    mut len: u64,
) -> Result<()> {
    while len > 0 {
        within(STALL_MAX, stream.readable()).await?;
        // Stands if the memory cannot be written, which was checked before.
        let mut received = Err(io::ErrorKind::PermissionDenied.into());
        memory.memory().with_bytes_mut(offset, limit(len), &mut |bytes| {
            received = match stream.try_read(bytes) {
                Ok(0) => Err(io::ErrorKind::UnexpectedEof.into()),
                other => other,
            };
        });
        let received = progress(received)?;
        offset += received;
        len -= received;
    }
    Ok(())
}

fn limit(len: u64) -> usize {
    usize::try_from(len).unwrap_or(usize::MAX)
}

fn progress(step: io::Result<usize>) -> Result<u64> {
    match step {
        Ok(bytes) => Ok(bytes as u64),
        Err(error) if error.kind() == io::ErrorKind::WouldBlock => Ok(0),
        Err(error) => Err(broken(error)),
    }
}

/// Runs one step of IO; a peer that makes no progress for `patience` counts as gone.
pub(super) async fn within<T>(
    patience: Duration,
    step: impl Future<Output = io::Result<T>>,
) -> Result<T> {
    match tokio::time::timeout(patience, step).await {
        Ok(result) => result.map_err(broken),
        Err(_) => Err(Error::new(ErrorKind::Disconnected, "the peer makes no progress")),
    }
}

fn broken(error: io::Error) -> Error {
    Error::new(ErrorKind::Disconnected, "the connection broke").with_source(error)
}

/// Nobody who is alive holds a started frame or stream back for this long.
pub(super) const STALL_MAX: Duration = Duration::from_secs(10);
