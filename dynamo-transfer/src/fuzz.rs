//! What has to hold for any bytes: one function per decoder, called by the fuzz targets and by the
//! test that replays what they found.

use xxhash_rust::xxh3::xxh3_64;

use crate::backend::tcp;
use crate::peer::metadata;

/// What is fed, by name.
pub type Target = (&'static str, fn(&[u8]));

/// The targets of this crate.
pub const TARGETS: [Target; 3] = [
    ("transfer_metadata", fuzz_metadata),
    ("transfer_request", fuzz_request),
    ("transfer_status", fuzz_status),
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

/// A status is read, or refused.
pub fn fuzz_status(data: &[u8]) {
    tcp::fuzz_status(data);
}
