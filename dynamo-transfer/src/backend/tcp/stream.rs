//! Moving bytes between a socket and leased memory, in place and within a bound per step.

use std::future::Future;
use std::io::{self, IoSlice, IoSliceMut};
use std::time::Duration;

use bytes::{Buf, BytesMut};
use tokio::net::TcpStream;

pub(super) use crate::backend::connection::{STALL_MAX, within};

use crate::backend::connection::broken;
use crate::error::{Error, ErrorKind, Result};
use crate::memory::{Memory, copy};
use crate::plan::behind;

/// Sends bytes.
pub(super) async fn send(stream: &TcpStream, mut bytes: &[u8]) -> Result<()> {
    while !bytes.is_empty() {
        let sent = progress(stream.try_write(bytes), stream.writable(), STALL_MAX).await?;
        bytes = &bytes[sent..];
    }
    Ok(())
}

/// Sends `head`, and behind it ranges of memory.
pub(super) async fn send_memory(
    stream: &TcpStream,
    mut head: &[u8],
    memory: &Memory,
    ranges: impl Iterator<Item = (u64, u64)> + Clone,
) -> Result<()> {
    let len: u64 = ranges.clone().map(|range| range.1).sum();
    let mut done = 0;
    while !head.is_empty() || done < len {
        let sent = memory.gather(behind(ranges.clone(), done), |body| {
            if head.is_empty() {
                return stream.try_write_vectored(body);
            }
            let body = body.iter().map(|slice| IoSlice::new(slice));
            let all: Vec<_> = std::iter::once(IoSlice::new(head)).chain(body).collect();
            stream.try_write_vectored(&all)
        });
        let sent = progress(sent, stream.writable(), STALL_MAX).await?;
        let of_head = sent.min(head.len());
        head = &head[of_head..];
        done += (sent - of_head) as u64;
    }
    Ok(())
}

/// Receives into ranges of memory, first what is in `buffered`.
pub(super) async fn recv_memory(
    stream: &TcpStream,
    buffered: &mut BytesMut,
    memory: &Memory,
    ranges: impl Iterator<Item = (u64, u64)> + Clone,
) -> Result<()> {
    let len: u64 = ranges.clone().map(|range| range.1).sum();
    let mut done = 0;
    while done < len {
        let rest = behind(ranges.clone(), done);
        let received = if buffered.is_empty() {
            let read = |slices: &mut [IoSliceMut<'_>]| at_end(stream.try_read_vectored(slices));
            memory.scatter(rest, read)
        } else {
            memory.scatter(rest, |slices| Ok(copy(&[IoSlice::new(buffered)], slices)))
        };
        // Stands if the memory cannot be written, which was checked before.
        let received = received.unwrap_or_else(|| Err(io::ErrorKind::PermissionDenied.into()));
        let received = progress(received, stream.readable(), STALL_MAX).await?;
        buffered.advance(received.min(buffered.len()));
        done += received as u64;
    }
    Ok(())
}

/// Receives `len` bytes for nobody, first what is in `buffered`.
pub(super) async fn discard(
    stream: &TcpStream,
    buffered: &mut BytesMut,
    mut len: u64,
) -> Result<()> {
    let mut scratch = vec![0; DISCARD_BYTES];
    while len > 0 {
        let most = usize::try_from(len).unwrap_or(usize::MAX);
        let gone = if buffered.is_empty() {
            let read = at_end(stream.try_read(&mut scratch[..most.min(DISCARD_BYTES)]));
            progress(read, stream.readable(), STALL_MAX).await?
        } else {
            let gone = most.min(buffered.len());
            buffered.advance(gone);
            gone
        };
        len -= gone as u64;
    }
    Ok(())
}

/// Fills `out`, waiting `patience` for the first byte.
pub(super) async fn recv(stream: &TcpStream, out: &mut [u8], patience: Duration) -> Result<()> {
    let mut done = 0;
    while done < out.len() {
        let patience = if done == 0 { patience } else { STALL_MAX };
        let received = at_end(stream.try_read(&mut out[done..]));
        done += progress(received, stream.readable(), patience).await?;
    }
    Ok(())
}

/// Receives the body of a frame of at most `bytes_max`, waiting `patience` for its first byte; what
/// came behind it stays in `buffered`.
///
/// Memory grows with what arrives, not with what is announced.
pub(super) async fn recv_frame(
    stream: &TcpStream,
    buffered: &mut BytesMut,
    bytes_max: usize,
    patience: Duration,
) -> Result<BytesMut> {
    loop {
        let needed = match buffered.first_chunk() {
            Some(len) => {
                let len = u32::from_le_bytes(*len) as usize;
                if len > bytes_max {
                    let message = format!("frame of {len} bytes, at most {bytes_max}");
                    return Err(Error::new(ErrorKind::Protocol, message));
                }
                4 + len
            }
            None => 4,
        };
        if needed > 4 && buffered.len() >= needed {
            let mut frame = buffered.split_to(needed);
            frame.advance(4);
            return Ok(frame);
        }
        let patience = if buffered.is_empty() { patience } else { STALL_MAX };
        buffered.reserve(BUFFERED_BYTES);
        let received = at_end(stream.try_read_buf(buffered));
        progress(received, stream.readable(), patience).await?;
    }
}

fn at_end(received: io::Result<usize>) -> io::Result<usize> {
    match received {
        Ok(0) => Err(io::ErrorKind::UnexpectedEof.into()),
        other => other,
    }
}

/// Returns how far a step got; one that would block waits for `ready` and got nowhere.
async fn progress(
    step: io::Result<usize>,
    ready: impl Future<Output = io::Result<()>>,
    patience: Duration,
) -> Result<usize> {
    match step {
        Ok(bytes) => Ok(bytes),
        Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
            within(patience, ready).await.map(|()| 0)
        }
        Err(error) => Err(broken(error)),
    }
}

/// Holds most requests whole; what comes with them of the bytes behind is copied once.
const BUFFERED_BYTES: usize = 512;

const DISCARD_BYTES: usize = 16 << 10;
