//! Memory that peers may reach: buffers, regions, and the table that decides who may.

mod access;
mod buffer;
mod concat;
mod far;
mod hold;
mod kind;
mod lease;
mod owned;
mod region;
#[cfg(target_os = "linux")]
mod shared;
mod slots;
mod span;
mod spans;
mod table;
mod token;

pub use buffer::HostBuffer;
pub use kind::MemoryKind;
pub use region::{Grant, RegisteredRegion};
pub use slots::{SharedSlot, SharedSlots, Slot, SlotList, SlotRun};
pub use table::Rights;

#[cfg(target_os = "linux")]
pub(crate) use access::SLICES_MAX;
pub(crate) use access::{Memory, copy};
#[cfg(any(target_os = "linux", feature = "ucx"))]
pub(crate) use concat::Concat;
pub(crate) use far::{Keep, Piece};
pub(crate) use lease::{Backed, FarLease, Lease, Leased, Uses};
pub(crate) use owned::Owned;
#[cfg(target_os = "linux")]
pub(crate) use shared::{Mapping, SharedFile};
pub(crate) use span::Span;
pub(crate) use spans::SpanList;
#[cfg(target_os = "linux")]
pub(crate) use table::Standing;
pub(crate) use table::{RegionTable, Right, random};
pub(crate) use token::Token;
