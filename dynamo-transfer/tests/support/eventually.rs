use std::time::Duration;

/// Waits until `holds` says so, and not for ever: what never comes fails its test.
pub(crate) async fn eventually(what: &'static str, mut holds: impl FnMut() -> bool) {
    let waits = async {
        while !holds() {
            tokio::task::yield_now().await;
        }
    };
    let waited = tokio::time::timeout(Duration::from_secs(20), waits).await;
    assert!(waited.is_ok(), "never: {what}");
}
