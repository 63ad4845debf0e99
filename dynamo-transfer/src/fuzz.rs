//! What has to hold for any bytes: one function per decoder, called by the fuzz targets and by the
//! test that replays what they found.

use xxhash_rust::xxh3::xxh3_64;

use crate::backend::cuda::IpcHandle;
#[cfg(target_os = "linux")]
use crate::backend::shm;
use crate::backend::tcp;
#[cfg(feature = "ucx")]
use crate::backend::ucx;
use crate::peer::metadata;

/// What is fed, by name.
pub type Target = (&'static str, fn(&[u8]));

/// The targets of this crate, as far as it is built.
pub const TARGETS: &[Target] = &[
    ("transfer_metadata", fuzz_metadata),
    ("transfer_request", fuzz_request),
    ("transfer_status", fuzz_status),
    ("transfer_device", fuzz_device),
    #[cfg(target_os = "linux")]
    ("transfer_shm_request", fuzz_shm_request),
    #[cfg(target_os = "linux")]
    ("transfer_shm_answer", fuzz_shm_answer),
    #[cfg(target_os = "linux")]
    ("transfer_shm_page", fuzz_shm_page),
    #[cfg(feature = "ucx")]
    ("transfer_ucx", fuzz_ucx),
];

/// Metadata that is taken is written as the same bytes; also behind a checksum that is right.
///
/// # Panics
/// If not.
pub fn fuzz_metadata(data: &[u8]) {
    let summed = [data, &xxh3_64(data).to_le_bytes()].concat();
    for bytes in [data, &summed] {
        if let Ok(agent) = metadata::decode(bytes) {
            assert_eq!(metadata::encode_again(&agent), bytes);
        }
    }
}

/// A request that is taken is written as one that says the same.
///
/// # Panics
/// If not.
pub fn fuzz_request(data: &[u8]) {
    tcp::fuzz_request(data);
}

/// A status that is taken is written as one that says the same.
///
/// # Panics
/// If not.
pub fn fuzz_status(data: &[u8]) {
    tcp::fuzz_status(data);
}

/// A handle of device memory that is taken is written as the same bytes.
///
/// # Panics
/// If not.
pub fn fuzz_device(data: &[u8]) {
    if let Ok(handle) = IpcHandle::from_bytes(data) {
        assert_eq!(handle.to_bytes(), data);
    }
}

/// A request to an owner on this host that is taken is written as the same bytes.
///
/// # Panics
/// If not.
#[cfg(target_os = "linux")]
pub fn fuzz_shm_request(data: &[u8]) {
    shm::fuzz_request(data);
}

/// A welcome or an open region that is taken is written as the same bytes, and what is open lies in
/// its files.
///
/// # Panics
/// If not.
#[cfg(target_os = "linux")]
pub fn fuzz_shm_answer(data: &[u8]) {
    shm::fuzz_answer(data);
}

/// Whatever a peer writes on the page: no copy begins in a slot that was revoked.
///
/// # Panics
/// If one does.
#[cfg(target_os = "linux")]
pub fn fuzz_shm_page(data: &[u8]) {
    shm::fuzz_page(data);
}

/// A message over UCX that is taken is written as the same bytes. The first byte says which: a
/// header, or the body of a hello, a request, a welcome, a grant or a status.
///
/// # Panics
/// If not.
#[cfg(feature = "ucx")]
pub fn fuzz_ucx(data: &[u8]) {
    ucx::fuzz(data);
}
