use super::Load;
use super::row::{Claim, clamp};

/// The leases of one worker's bookings; places are used anew, so that booking allocates nothing
/// once there have been as many before.
#[derive(Debug, Default)]
pub(super) struct Leases {
    places: Vec<Place>,
    /// The last place that was given back; each names the one before.
    free: Option<LeaseId>,
    /// What others had booked when the worker reported last, as far as they still have.
    pub(super) others_reported: Load,
}

/// Where a lease is, as long as its booking lives.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct LeaseId(usize);

#[derive(Debug)]
enum Place {
    Taken(Lease),
    Free { next: Option<LeaseId> },
}

/// A claim that ends when its booking is dropped, and counts for nothing while it has expired.
#[derive(Debug, Clone, Copy)]
pub(super) struct Lease {
    pub(super) claim: Claim,
    pub(super) is_decoding: bool,
    pub(super) is_expired: bool,
    /// Whether it counted when the worker reported last.
    pub(super) is_reported: bool,
    /// When there was progress last, in nanoseconds.
    pub(super) progress: u64,
}

impl Lease {
    /// Returns what it counts for, unless it has expired.
    pub(super) fn load(&self) -> Load {
        let (tokens, blocks) = (self.claim.prefill_tokens, self.claim.blocks);
        Load {
            requests: 1,
            decoding: self.is_decoding.into(),
            prefill_tokens: if self.is_decoding { 0 } else { clamp(tokens.into()) },
            blocks: clamp(blocks.into()),
            blocks_total: 0,
        }
    }
}

impl Leases {
    /// Takes in that the worker reports; returns what counts on it.
    pub(super) fn report(&mut self) -> Load {
        let mut booked = Load::default();
        for lease in self.iter_mut().filter(|lease| !lease.is_expired) {
            lease.is_reported = true;
            booked = booked.plus(lease.load());
        }
        booked
    }

    pub(super) fn insert(&mut self, lease: Lease) -> LeaseId {
        let Some(id) = self.free else {
            self.places.push(Place::Taken(lease));
            return LeaseId(self.places.len() - 1);
        };
        let taken = std::mem::replace(&mut self.places[id.0], Place::Taken(lease));
        self.free = match taken {
            Place::Free { next } => next,
            Place::Taken(_) => unreachable!("a place on the list is free"),
        };
        id
    }

    pub(super) fn get(&mut self, id: LeaseId) -> &mut Lease {
        match &mut self.places[id.0] {
            Place::Taken(lease) => lease,
            Place::Free { .. } => unreachable!("only the booking gives its place back"),
        }
    }

    pub(super) fn remove(&mut self, id: LeaseId) -> Lease {
        let lease = *self.get(id);
        self.places[id.0] = Place::Free { next: self.free };
        self.free = Some(id);
        lease
    }

    pub(super) fn iter_mut(&mut self) -> impl Iterator<Item = &mut Lease> {
        self.places.iter_mut().filter_map(|place| match place {
            Place::Taken(lease) => Some(lease),
            Place::Free { .. } => None,
        })
    }
}
