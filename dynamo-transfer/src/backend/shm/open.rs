use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use super::cma::{Piece, Process};
use super::link::Link;
use super::map;
use super::opened::Opened;
use crate::backend::Operation;
use crate::error::{Error, ErrorKind, Result};
use crate::memory::{Concat, Mapping, Right, SLICES_MAX, Span, Token};
use crate::plan::{Stripe, behind};

/// A region of a peer that may be copied from or to without asking, until its slot is revoked.
/// Dropping it tells the owner.
pub(super) struct Open {
    pub(super) link: Arc<Link>,
    pub(super) token: Token,
    /// When it was last used, as its peer counts.
    pub(super) used: AtomicU64,
    slot: u32,
    whole: Concat,
    places: Places,
}

enum Places {
    Mapped { spans: Vec<Span>, _mappings: Vec<Arc<Mapping>> },
    Addresses(Vec<Piece>),
}

/// How a run ended that did not fail.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Ended {
    Complete,
    /// The owner has revoked the slot; it says why when it is asked again.
    Revoked,
}

impl Open {
    /// Takes what the owner has opened; `mappings` are of its files, in their order.
    pub(super) fn new(
        link: &Arc<Link>,
        token: Token,
        opened: &Opened,
        mappings: Vec<Arc<Mapping>>,
    ) -> Result<Self> {
        let whole = Concat::new(opened.pieces.iter().map(|piece| piece.1));
        let pieces = opened.pieces.iter();
        let places = if mappings.is_empty() {
            Places::Addresses(pieces.map(|&(at, len)| (at, small(len))).collect())
        } else {
            let span =
                |&(file, len): &(u64, u64)| mappings[small(file)].span().slice(0, small(len));
            Places::Mapped { spans: pieces.map(span).collect(), _mappings: mappings }
        };
        let (link, used) = (Arc::clone(link), AtomicU64::new(0));
        let open = Self { link, token, used, slot: opened.slot, whole, places };
        open.probe()?;
        Ok(open)
    }

    pub(super) fn len(&self) -> u64 {
        self.whole.len()
    }

    pub(super) fn is_usable(&self) -> bool {
        self.link.is_open(self.slot)
    }

    /// Copies stripes until none is left.
    pub(super) fn run(&self, operation: &Operation) -> Result<Ended> {
        let stripe_bytes = match self.places {
            Places::Mapped { .. } => MAPPED_STRIPE_BYTES,
            Places::Addresses(_) => KERNEL_STRIPE_BYTES,
        };
        while !operation.is_planned() {
            if self.link.is_over() {
                return Err(Error::new(ErrorKind::Disconnected, "the owner has left"));
            }
            let Some(_entered) = self.link.enter(self.slot)? else { return Ok(Ended::Revoked) };
            let Some(stripe) = operation.next(stripe_bytes, SLICES_MAX) else { break };
            operation.begin();
            self.copy(operation, &stripe)?;
            operation.advance(&stripe);
        }
        operation.check().map(|()| Ended::Complete)
    }

    fn copy(&self, operation: &Operation, stripe: &Stripe) -> Result<()> {
        let (local, mut done) = (operation.local.memory(), 0);
        while done < stripe.bytes {
            let locals = behind(stripe.local(), done);
            let pieces = behind(stripe.remote(), done)
                .flat_map(|(offset, len)| self.whole.pieces(offset, len))
                .map(|(index, at, len)| (index, small(at), small(len)))
                .take(SLICES_MAX);
            let moved = match &self.places {
                Places::Mapped { spans, .. } => {
                    let spans = pieces.map(|(index, at, len)| spans[index].slice(at, len));
                    let spans: Vec<_> = spans.collect();
                    match operation.right {
                        Right::Read => local.scatter(locals, |to| map::read(&spans, to)).map(Ok),
                        Right::Write => {
                            Some(Ok(local.gather(locals, |from| map::write(from, &spans))))
                        }
                    }
                }
                Places::Addresses(places) => {
                    let process = self.process()?;
                    let address = |(index, at, len)| {
                        let (place, _): Piece = places[index];
                        (place + at as u64, len)
                    };
                    let pieces: Vec<Piece> = pieces.map(address).collect();
                    match operation.right {
                        Right::Read => local.scatter(locals, |to| process.read(&pieces, to)),
                        Right::Write => {
                            Some(local.gather(locals, |from| process.write(from, &pieces)))
                        }
                    }
                }
            };
            match moved.transpose()? {
                Some(moved) if moved > 0 => done += moved as u64,
                _ => {
                    let message = "a checked range cannot be copied";
                    return Err(Error::new(ErrorKind::Internal, message));
                }
            }
        }
        Ok(())
    }

    /// Looks whether the kernel lets this process reach memory that is not mapped: what devices have
    /// mapped it may not.
    fn probe(&self) -> Result<()> {
        let Places::Addresses(places) = &self.places else { return Ok(()) };
        let firsts: Vec<Piece> = places.iter().take(SLICES_MAX).map(|&(at, _)| (at, 1)).collect();
        // One that is revoked already says so when it is used.
        let Some(_entered) = self.link.enter(self.slot)? else { return Ok(()) };
        if firsts.is_empty() {
            return Ok(());
        }
        let mut bytes = vec![0; firsts.len()];
        let read = self.process()?.read(&firsts, &mut [io::IoSliceMut::new(&mut bytes)]);
        match read {
            Ok(read) if read == firsts.len() => Ok(()),
            Err(error) if error.kind() == ErrorKind::Disconnected => Err(error),
            _ => Err(unreachable()),
        }
    }

    fn process(&self) -> Result<&Process> {
        self.link.process().ok_or_else(unreachable)
    }

    pub(super) fn touch(&self, at: u64) {
        self.used.store(at, Ordering::Relaxed);
    }
}

impl Drop for Open {
    fn drop(&mut self) {
        self.link.close(self.slot);
    }
}

/// Checked when it was decoded: pieces lie in their files, and in what can be addressed.
fn small(number: u64) -> usize {
    usize::try_from(number).unwrap_or(usize::MAX)
}

fn unreachable() -> Error {
    Error::new(ErrorKind::BackendUnavailable, "the peer's memory cannot be reached from here")
}

/// Long enough to run at memory speed, short enough to notice a cancellation or a revocation.
const MAPPED_STRIPE_BYTES: u64 = 256 << 10;

/// As many blocks of 4 KiB as one call takes.
const KERNEL_STRIPE_BYTES: u64 = 2 << 20;
