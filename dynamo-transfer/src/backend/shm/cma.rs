//! Copies between memory of this process and memory of another one, by the kernel.
#![expect(unsafe_code, reason = "process_vm_readv and process_vm_writev")]

use std::io::{self, IoSlice, IoSliceMut};

use super::Proof;
use crate::error::{Error, ErrorKind, Result};

/// A process that has proven that it is the peer.
#[derive(Debug)]
pub(super) struct Process {
    pid: libc::pid_t,
    proof: Proof,
}

/// A piece of the other process's memory: address and length.
pub(super) type Piece = (u64, usize);

impl Process {
    /// Takes a process whose memory this one may read, and that has `proof` where it says.
    pub(super) fn new(pid: i32, proof: Proof) -> Result<Self> {
        let process = Self { pid, proof };
        process.check()?;
        Ok(process)
    }

    /// Copies from the process until one side ends, at most so many pieces as one call takes; returns
    /// how many bytes.
    pub(super) fn read(&self, from: &[Piece], to: &mut [IoSliceMut<'_>]) -> Result<usize> {
        // The proof comes in the same call: the id may belong to another process by now.
        let mut said = [0; PROOF_BYTES];
        let locals = to.iter_mut().map(|slice| iovec(slice.as_mut_ptr(), slice.len()));
        let locals: Vec<_> =
            std::iter::once(iovec(said.as_mut_ptr(), PROOF_BYTES)).chain(locals).collect();
        let remotes: Vec<_> =
            std::iter::once(self.proof_piece()).chain(from.iter().copied()).map(remote).collect();
        // SAFETY: the local pieces are buffers borrowed exclusively for this call; remote addresses
        // are the kernel's to check.
        let read = unsafe {
            libc::process_vm_readv(
                self.pid,
                locals.as_ptr(),
                locals.len() as libc::c_ulong,
                remotes.as_ptr(),
                remotes.len() as libc::c_ulong,
                0,
            )
        };
        let read = outcome(read)?;
        self.compare(said)?;
        moved(read.saturating_sub(PROOF_BYTES))
    }

    /// Copies to the process until one side ends, like [`read`](Self::read).
    pub(super) fn write(&self, from: &[IoSlice<'_>], to: &[Piece]) -> Result<usize> {
        self.check()?;
        let locals = from.iter().map(|slice| iovec(slice.as_ptr().cast_mut(), slice.len()));
        let locals: Vec<_> = locals.collect();
        let remotes: Vec<_> = to.iter().copied().map(remote).collect();
        // SAFETY: the local pieces are borrowed for this call, which only reads them; remote
        // addresses are the kernel's to check, and the owner said that they may be written.
        let written = unsafe {
            libc::process_vm_writev(
                self.pid,
                locals.as_ptr(),
                locals.len() as libc::c_ulong,
                remotes.as_ptr(),
                remotes.len() as libc::c_ulong,
                0,
            )
        };
        moved(outcome(written)?)
    }

    /// Checks that the process is still the one that has the proof.
    fn check(&self) -> Result<()> {
        let mut said = [0; PROOF_BYTES];
        let local = iovec(said.as_mut_ptr(), PROOF_BYTES);
        let remote = remote(self.proof_piece());
        // SAFETY: the local piece is a buffer of this function's.
        let read = unsafe {
            libc::process_vm_readv(self.pid, &raw const local, 1, &raw const remote, 1, 0)
        };
        outcome(read)?;
        self.compare(said)
    }

    fn compare(&self, said: [u8; PROOF_BYTES]) -> Result<()> {
        if u128::from_le_bytes(said) == self.proof.value {
            return Ok(());
        }
        let message = format!("process {} is not the peer", self.pid);
        Err(Error::new(ErrorKind::Disconnected, message))
    }

    fn proof_piece(&self) -> Piece {
        (self.proof.place, PROOF_BYTES)
    }
}

fn iovec(at: *mut u8, len: usize) -> libc::iovec {
    libc::iovec { iov_base: at.cast(), iov_len: len }
}

fn remote((address, len): Piece) -> libc::iovec {
    // An address of the other process: never touched by this one.
    let address = usize::try_from(address).unwrap_or(usize::MAX);
    iovec(std::ptr::without_provenance_mut(address), len)
}

fn outcome(moved: isize) -> Result<usize> {
    usize::try_from(moved).map_err(|_| {
        let error = io::Error::last_os_error();
        let (kind, message) = match error.raw_os_error() {
            Some(libc::ESRCH) => (ErrorKind::Disconnected, "the owner's process has ended"),
            Some(libc::EPERM | libc::ENOSYS) => {
                (ErrorKind::PermissionDenied, "the owner's memory may not be reached from here")
            }
            _ => (ErrorKind::Internal, "the owner's memory cannot be reached"),
        };
        Error::new(kind, message).with_source(error)
    })
}

fn moved(bytes: usize) -> Result<usize> {
    match bytes {
        0 => Err(Error::new(ErrorKind::Internal, "the owner's memory cannot be reached")),
        bytes => Ok(bytes),
    }
}

const PROOF_BYTES: usize = 16;

#[cfg(test)]
mod tests {
    use super::*;

    fn piece(bytes: &[u8]) -> Piece {
        (bytes.as_ptr().expose_provenance() as u64, bytes.len())
    }

    fn own() -> i32 {
        i32::try_from(std::process::id()).unwrap()
    }

    #[test]
    fn scattered_pieces_are_moved_and_what_is_not_there_is_an_error() {
        let secret = 77u128.to_le_bytes();
        let proof = Proof { place: piece(&secret).0, value: 77 };
        let process = Process::new(own(), proof).unwrap();
        let source = [1u8, 2, 3, 4, 5, 6];
        let (mut a, mut b) = ([0; 1], [0; 4]);
        let mut slices = [IoSliceMut::new(&mut a), IoSliceMut::new(&mut b)];
        let pieces = [piece(&source[4..]), piece(&source[..3])];
        assert_eq!(process.read(&pieces, &mut slices).unwrap(), 5);
        assert_eq!((a, b), ([5], [6, 1, 2, 3]));
        let mut target = [0u8; 4];
        let place = Span::of_mut(&mut target);
        let place = (place.as_ptr().expose_provenance() as u64, 4);
        assert_eq!(process.write(&[IoSlice::new(&[9; 3])], &[place]).unwrap(), 3);
        assert_eq!(target, [9, 9, 9, 0]);
        // Nothing is mapped there.
        let nowhere = [piece(&source[..2]), (4096, 8)];
        let mut out = [0; 10];
        assert_eq!(process.read(&nowhere, &mut [IoSliceMut::new(&mut out)]).unwrap(), 2);
        let error = process.read(&nowhere[1..], &mut [IoSliceMut::new(&mut out)]).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Internal);
    }

    #[test]
    fn a_process_without_the_proof_or_that_has_ended_is_not_the_peer() {
        let secret = 77u128.to_le_bytes();
        let wrong = Proof { place: piece(&secret).0, value: 78 };
        assert_eq!(Process::new(own(), wrong).unwrap_err().kind(), ErrorKind::Disconnected);
        let nowhere = Proof { place: 4096, value: 77 };
        assert_eq!(Process::new(own(), nowhere).unwrap_err().kind(), ErrorKind::Internal);
        let right = Proof { place: piece(&secret).0, value: 77 };
        assert_eq!(Process::new(i32::MAX, right).unwrap_err().kind(), ErrorKind::Disconnected);
    }

    use crate::memory::Span;
}
