//! Bounds of waits.

use std::time::Duration;

use tokio::sync::watch;
use tokio::time::Instant;

/// Waits until the first of several times has come, if there is any, or until they have changed.
///
/// # Cancel safety
/// Cancel safe.
pub(crate) async fn expiry_or_change(next: Option<Instant>, changed: &mut watch::Receiver<()>) {
    let expiry = async {
        match next {
            Some(at) => tokio::time::sleep_until(at).await,
            None => std::future::pending().await,
        }
    };
    tokio::select! {
        () = expiry => {}
        // The sender lives as long as what it is about.
        _ = changed.changed() => {}
    }
}

/// Far beyond any wait; keeps arithmetic on times safe.
pub(crate) const TIME_MAX: Duration = Duration::from_secs(24 * 60 * 60);
