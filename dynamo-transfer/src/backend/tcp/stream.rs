//! Moving bytes between a socket and leased memory, in place and within a bound per step.

use std::future::Future;
use std::io::{self, IoSlice};
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

/// Sends `head`, behind it ranges of memory, and behind these a checksum if `is_checked`.
pub(super) async fn send_memory(
    stream: &TcpStream,
    mut head: &[u8],
    memory: &Memory,
    ranges: impl Iterator<Item = (u64, u64)> + Clone,
    is_checked: bool,
) -> Result<()> {
    let len: u64 = ranges.clone().map(|range| range.1).sum();
    let (mut done, mut sum) = (0, is_checked.then(Checksum::default));
    while !head.is_empty() || done < len {
        let sent = memory.gather(behind(ranges.clone(), done), |body| {
            let sent = if head.is_empty() {
                stream.try_write_vectored(body)
            } else {
                let body = body.iter().map(|slice| IoSlice::new(slice));
                let all: Vec<_> = std::iter::once(IoSlice::new(head)).chain(body).collect();
                stream.try_write_vectored(&all)
            };
            // Under the same hold: of what the kernel has taken, not of what came after it.
            if let (Some(sum), Ok(sent)) = (&mut sum, &sent) {
                sum.add(body.iter().map(|slice| &**slice), sent.saturating_sub(head.len()));
            }
            sent
        });
        let sent = progress(sent, stream.writable(), STALL_MAX).await?;
        let of_head = sent.min(head.len());
        head = &head[of_head..];
        done += (sent - of_head) as u64;
    }
    match sum {
        Some(sum) => send(stream, &sum.bytes()).await,
        None => Ok(()),
    }
}

/// How bytes have arrived, all of them.
pub(super) enum Arrival {
    Intact,
    /// With another checksum than where they came from.
    Corrupted(Error),
}

/// Receives into ranges of memory, first what is in `buffered`, and if `is_checked` compares the
/// checksum behind; fails if the connection does.
pub(super) async fn recv_memory(
    stream: &TcpStream,
    buffered: &mut BytesMut,
    memory: &Memory,
    ranges: impl Iterator<Item = (u64, u64)> + Clone,
    is_checked: bool,
) -> Result<Arrival> {
    let len: u64 = ranges.clone().map(|range| range.1).sum();
    let (mut done, mut sum) = (0, is_checked.then(Checksum::default));
    while done < len {
        let received = memory.scatter(behind(ranges.clone(), done), |slices| {
            let received = if buffered.is_empty() {
                at_end(stream.try_read_vectored(slices))?
            } else {
                copy(&[IoSlice::new(buffered)], slices)
            };
            if let Some(sum) = &mut sum {
                sum.add(slices.iter().map(|slice| &**slice), received);
            }
            Ok(received)
        });
        // Stands if the memory cannot be written, which was checked before.
        let received = received.unwrap_or_else(|| Err(io::ErrorKind::PermissionDenied.into()));
        let received = progress(received, stream.readable(), STALL_MAX).await?;
        buffered.advance(received.min(buffered.len()));
        done += received as u64;
    }
    let Some(sum) = sum else { return Ok(Arrival::Intact) };
    let mut sent = [0; CHECKSUM_BYTES];
    let here = buffered.len().min(CHECKSUM_BYTES);
    buffered.copy_to_slice(&mut sent[..here]);
    recv(stream, &mut sent[here..], STALL_MAX).await?;
    if sent == sum.bytes() {
        return Ok(Arrival::Intact);
    }
    let message = format!("{len} bytes have another checksum than where they came from");
    Ok(Arrival::Corrupted(Error::new(ErrorKind::Corrupted, message)))
}

/// The CRC-32C (Castagnoli; RFC 3720, appendix B.4) of bytes as they go by.
#[derive(Default)]
struct Checksum(u32);

impl Checksum {
    /// Takes in the first `len` bytes of `slices`.
    fn add<'a>(&mut self, slices: impl Iterator<Item = &'a [u8]>, mut len: usize) {
        for slice in slices {
            let taken = &slice[..len.min(slice.len())];
            self.0 = crc32c::crc32c_append(self.0, taken);
            len -= taken.len();
            if len == 0 {
                return;
            }
        }
    }

    fn bytes(&self) -> [u8; CHECKSUM_BYTES] {
        self.0.to_le_bytes()
    }
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

pub(super) const CHECKSUM_BYTES: usize = 4;

const DISCARD_BYTES: usize = 16 << 10;
