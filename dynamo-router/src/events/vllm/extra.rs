//! What the KV of a block depends on besides its tokens, as part of a namespace; pure.

use std::sync::Arc;

use dynamo_core::protocol::{BlockHasher, CacheNamespace};

/// Leaves out the adapter's name: the namespace has it already.
pub(super) fn without_adapter<'a>(keys: &'a [Vec<u8>], adapter: &str) -> &'a [Vec<u8>] {
    match keys.split_first() {
        Some((first, rest)) if first == adapter.as_bytes() => rest,
        _ => keys,
    }
}

/// Adds keys to the extras of a namespace; one that repeats the last is no other.
pub(super) fn extended(namespace: &Arc<CacheNamespace>, keys: &[Vec<u8>]) -> Arc<CacheNamespace> {
    let mut extra = namespace.extra.clone();
    for key in keys.iter().filter(|key| !key.is_empty()) {
        if extra.ends_with(key) {
            continue;
        }
        if !extra.is_empty() {
            extra.push(0);
        }
        extra.extend_from_slice(key);
    }
    if extra == namespace.extra {
        return namespace.clone();
    }
    let mut extended = CacheNamespace { extra, ..(**namespace).clone() };
    if extended.extra.len() > EXTRA_BYTES_MAX {
        // The hash of no tokens is one of the namespace.
        extended.extra = BlockHasher::new(&extended).local(&[]).0.to_le_bytes().to_vec();
    }
    Arc::new(extended)
}

/// Longer extras are replaced by a digest of them.
const EXTRA_BYTES_MAX: usize = 256;
