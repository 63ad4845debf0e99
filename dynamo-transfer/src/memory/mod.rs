//! Memory that peers may reach: buffers, regions, and the table that decides who may.

mod access;
mod buffer;
mod hold;
mod region;
mod span;
mod table;
mod token;

pub use buffer::HostBuffer;
pub use region::{Grant, RegionHandle, RegisteredRegion};

pub(crate) use access::{Memory, copy};
pub(crate) use span::Span;
pub(crate) use table::{Lease, RegionTable, Right, Rights, random};
pub(crate) use token::Token;
