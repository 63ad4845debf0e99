//! Messages and files over a socket of this host, each step within a bound.

use std::collections::VecDeque;
use std::io::{self, IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{BorrowedFd, OwnedFd};

use bytes::{Buf, BytesMut};
use rustix::cmsg_space;
use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags, recvmsg, sendmsg,
};
use tokio::io::Interest;
use tokio::net::UnixStream;

use super::opened::FILES_MAX;
use crate::backend::connection::{STALL_MAX, broken, within};
use crate::error::{Error, ErrorKind, Result};

/// What has arrived and was not taken yet.
#[derive(Debug, Default)]
pub(super) struct Inbox {
    bytes: BytesMut,
    files: VecDeque<OwnedFd>,
}

/// Sends bytes; files go with the first of them.
pub(super) async fn send(
    stream: &UnixStream,
    mut bytes: &[u8],
    mut files: &[BorrowedFd<'_>],
) -> Result<()> {
    while !bytes.is_empty() {
        let sent = stream.try_io(Interest::WRITABLE, || {
            let mut space = [MaybeUninit::uninit(); cmsg_space!(ScmRights(FILES_MAX))];
            let mut control = SendAncillaryBuffer::new(&mut space);
            if !files.is_empty() && !control.push(SendAncillaryMessage::ScmRights(files)) {
                return Err(io::Error::new(io::ErrorKind::InvalidInput, "too many files"));
            }
            let flags = SendFlags::NOSIGNAL | SendFlags::DONTWAIT;
            Ok(sendmsg(stream, &[IoSlice::new(bytes)], &mut control, flags)?)
        });
        match sent {
            Ok(sent) => (bytes, files) = (&bytes[sent..], &[]),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                within(STALL_MAX, stream.writable()).await?;
            }
            Err(error) => return Err(broken(error)),
        }
    }
    Ok(())
}

impl Inbox {
    /// Receives the body of a message of at most `bytes_max`; what came behind it stays.
    ///
    /// Memory grows with what arrives, not with what is announced. Without `takes_files`, those that
    /// come are closed by the kernel. Once a message has begun it has to go on; the first byte may
    /// take as long as it likes.
    ///
    /// # Cancel safety
    /// Cancel safe: what has arrived stays here.
    pub(super) async fn message(
        &mut self,
        stream: &UnixStream,
        bytes_max: usize,
        takes_files: bool,
    ) -> Result<BytesMut> {
        loop {
            if let Some(len) = self.bytes.first_chunk() {
                let len = u32::from_le_bytes(*len) as usize;
                if len > bytes_max {
                    let message = format!("message of {len} bytes, at most {bytes_max}");
                    return Err(Error::new(ErrorKind::Protocol, message));
                }
                if self.bytes.len() >= 4 + len {
                    self.bytes.advance(4);
                    return Ok(self.bytes.split_to(len));
                }
            }
            match self.fill(stream, takes_files) {
                Ok(()) => {}
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    if self.bytes.is_empty() {
                        stream.readable().await.map_err(broken)?;
                    } else {
                        within(STALL_MAX, stream.readable()).await?;
                    }
                }
                Err(error) => return Err(broken(error)),
            }
        }
    }

    /// Takes files that came with what was received.
    pub(super) fn files(&mut self, count: usize) -> Result<Vec<OwnedFd>> {
        if self.files.len() != count {
            let message = format!("{} files came, {count} were announced", self.files.len());
            return Err(Error::new(ErrorKind::Protocol, message));
        }
        Ok(self.files.drain(..).collect())
    }

    fn fill(&mut self, stream: &UnixStream, takes_files: bool) -> io::Result<()> {
        let mut chunk = [0; CHUNK_BYTES];
        let mut space = [MaybeUninit::uninit(); cmsg_space!(ScmRights(FILES_MAX))];
        let received = stream.try_io(Interest::READABLE, || {
            let room = if takes_files { &mut space[..] } else { &mut [] };
            let mut control = RecvAncillaryBuffer::new(room);
            let flags = RecvFlags::CMSG_CLOEXEC | RecvFlags::DONTWAIT;
            let mut slices = [IoSliceMut::new(&mut chunk)];
            let received = recvmsg(stream, &mut slices, &mut control, flags)?;
            for message in control.drain() {
                if let RecvAncillaryMessage::ScmRights(files) = message {
                    self.files.extend(files);
                }
            }
            Ok(received.bytes)
        })?;
        if received == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        if self.files.len() > FILES_MAX {
            return Err(io::Error::new(io::ErrorKind::InvalidData, "too many files"));
        }
        self.bytes.extend_from_slice(&chunk[..received]);
        Ok(())
    }
}

const CHUNK_BYTES: usize = 4 << 10;
