use futures::future::join_all;

use super::{Transfer, TransferReport};
use crate::error::Result;

/// Transfers that settle together: none is given up because another one failed, and whoever waits
/// for the group knows that all of them have ended.
///
/// Dropping the group cancels what has not settled.
#[derive(Debug, Default)]
#[must_use = "dropping the group cancels its transfers"]
pub struct TransferGroup(Vec<Transfer>);

impl TransferGroup {
    /// Creates a group without transfers.
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds a transfer that has been posted.
    pub fn push(&mut self, transfer: Transfer) {
        self.0.push(transfer);
    }

    /// Returns the number of transfers.
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// Tells whether the group has no transfers.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Waits until all transfers have ended and are [quiet](Transfer::quiet); returns their outcomes in
    /// the order they were added.
    ///
    /// # Cancel safety
    /// Dropping the future is as dropping the group.
    pub async fn settled(self) -> Vec<Result<TransferReport>> {
        let settled = |mut transfer: Transfer| async move {
            let outcome = (&mut transfer).await;
            transfer.quiet().await;
            outcome
        };
        join_all(self.0.into_iter().map(settled)).await
    }

    /// Waits like [`settled`](Self::settled); fails with the first failure in the order they were
    /// added.
    ///
    /// # Cancel safety
    /// Dropping the future is as dropping the group.
    pub async fn all(self) -> Result<Vec<TransferReport>> {
        self.settled().await.into_iter().collect()
    }
}

impl Extend<Transfer> for TransferGroup {
    fn extend<T: IntoIterator<Item = Transfer>>(&mut self, transfers: T) {
        self.0.extend(transfers);
    }
}

impl FromIterator<Transfer> for TransferGroup {
    fn from_iter<T: IntoIterator<Item = Transfer>>(transfers: T) -> Self {
        Self(transfers.into_iter().collect())
    }
}
