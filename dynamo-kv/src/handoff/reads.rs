use std::future::poll_fn;
use std::pin::Pin;
use std::task::Poll;

use dynamo_transfer::{Result, Transfer};

/// The reads of one pull: dropping them cancels those that have not ended.
#[derive(Debug, Default)]
pub(super) struct Reads {
    under_way: Vec<Transfer>,
    ended_bytes: u64,
}

impl Reads {
    pub(super) fn push(&mut self, transfer: Transfer) {
        self.under_way.push(transfer);
    }

    /// Returns how many bytes have arrived so far.
    pub(super) fn moved(&self) -> u64 {
        let moved = self.under_way.iter().map(|transfer| transfer.progress().bytes_moved);
        self.ended_bytes + moved.sum::<u64>()
    }

    /// Waits until all bytes have arrived, or one read has failed.
    ///
    /// Cancel safe: what has ended stays so.
    pub(super) async fn ended(&mut self) -> Result<()> {
        poll_fn(|context| {
            let mut at = 0;
            while let Some(transfer) = self.under_way.get_mut(at) {
                match Pin::new(transfer).poll(context) {
                    Poll::Pending => at += 1,
                    Poll::Ready(Ok(report)) => {
                        self.ended_bytes += report.bytes;
                        drop(self.under_way.swap_remove(at));
                    }
                    Poll::Ready(Err(error)) => return Poll::Ready(Err(error)),
                }
            }
            if self.under_way.is_empty() { Poll::Ready(Ok(())) } else { Poll::Pending }
        })
        .await
    }
}
