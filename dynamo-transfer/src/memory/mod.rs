//! Memory that peers may reach: buffers, regions, and the table that decides who may.

mod buffer;
mod region;
#[cfg(feature = "ucx")]
mod span;
mod table;

pub use buffer::HostBuffer;
pub use region::{RegionHandle, RegisteredRegion};

pub(crate) use region::Segment;
#[cfg(feature = "ucx")]
pub(crate) use span::Span;
pub(crate) use table::{Lease, RegionKey, RegionTable, Right, Rights, random};
