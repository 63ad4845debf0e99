//! A pool of device memory, one of host memory below it, and a disk below that.

mod basics;
#[cfg(feature = "cuda")]
mod cuda;
mod faults;
mod oracle;
mod refused;
mod support;
