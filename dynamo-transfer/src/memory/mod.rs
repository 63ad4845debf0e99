//! Memory that peers may reach: buffers, regions, and the table that decides who may.

mod access;
mod buffer;
mod hold;
mod region;
#[cfg(target_os = "linux")]
mod shared;
mod span;
mod table;
mod token;

pub use buffer::HostBuffer;
pub use region::{Grant, RegionHandle, RegisteredRegion};

#[cfg(target_os = "linux")]
pub(crate) use access::SLICES_MAX;
pub(crate) use access::{Memory, copy};
#[cfg(target_os = "linux")]
pub(crate) use shared::{Mapping, SharedFile};
pub(crate) use span::Span;
#[cfg(target_os = "linux")]
pub(crate) use table::Standing;
pub(crate) use table::{Lease, RegionTable, Right, Rights, random};
pub(crate) use token::Token;
