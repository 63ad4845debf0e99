use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::time::Duration;

use super::TransferReport;
use crate::descriptor::Load;
use crate::error::{ErrorKind, Result};
use crate::plan::{Distance, Pace, modelled};
use crate::vocabulary::BackendKind;

/// What an agent's own transfers have come to so far, and what it has registered.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct TransferStats {
    /// Transfers posted, also those refused at the limit.
    pub posted_total: u64,
    /// Transfers that were completed.
    pub completed_total: u64,
    /// Transfers that failed, other than by being cancelled.
    pub failed_total: u64,
    /// Transfers that were cancelled or dropped, or ended with the agent.
    pub cancelled_total: u64,
    /// Completed transfers, by backend in the order of [`BackendKind::ALL`].
    pub completed_by: [u64; BackendKind::ALL.len()],
    /// Bytes of completed transfers, likewise.
    pub bytes_total: [u64; BackendKind::ALL.len()],
    /// Wall time of completed transfers from posting to completion, likewise.
    pub elapsed_total: [Duration; BackendKind::ALL.len()],
    /// Regions registered and not revoked.
    pub regions: usize,
}

impl TransferStats {
    /// Returns the transfers that are posted and not settled.
    pub fn in_flight(&self) -> u64 {
        let settled = self.completed_total + self.failed_total + self.cancelled_total;
        self.posted_total.saturating_sub(settled)
    }

    /// Returns the bytes of completed transfers that `backend` has moved.
    pub fn bytes_by(&self, backend: BackendKind) -> u64 {
        index(backend).map_or(0, |index| self.bytes_total[index])
    }
}

/// Counts.
#[derive(Debug)]
pub(crate) struct Counters {
    posted: AtomicU64,
    completed: AtomicU64,
    failed: AtomicU64,
    cancelled: AtomicU64,
    completed_by: [AtomicU64; BackendKind::ALL.len()],
    bytes: [AtomicU64; BackendKind::ALL.len()],
    elapsed_ns: [AtomicU64; BackendKind::ALL.len()],
    /// How long transfers take, by what the model says, as bits.
    paces: [AtomicU32; BackendKind::ALL.len()],
}

impl Default for Counters {
    fn default() -> Self {
        let paces = std::array::from_fn(|_| AtomicU32::new(Pace::MODELLED.to_bits()));
        let (posted, completed, failed, cancelled) = Default::default();
        let (completed_by, bytes, elapsed_ns) = Default::default();
        Self { posted, completed, failed, cancelled, completed_by, bytes, elapsed_ns, paces }
    }
}

impl Counters {
    pub(crate) fn posted(&self) {
        self.posted.fetch_add(1, Ordering::Relaxed);
    }

    pub(crate) fn settled(&self, outcome: &Result<TransferReport>, distance: Distance) {
        let counter = match outcome {
            Ok(report) => {
                if let Some(index) = index(report.backend) {
                    self.completed_by[index].fetch_add(1, Ordering::Relaxed);
                    self.bytes[index].fetch_add(report.bytes, Ordering::Relaxed);
                    let nanos = u64::try_from(report.elapsed.as_nanos()).unwrap_or(u64::MAX);
                    self.elapsed_ns[index].fetch_add(nanos, Ordering::Relaxed);
                    self.learn(index, report, distance);
                }
                &self.completed
            }
            Err(error) if matches!(error.kind(), ErrorKind::Cancelled | ErrorKind::Closed) => {
                &self.cancelled
            }
            Err(_) => &self.failed,
        };
        counter.fetch_add(1, Ordering::Relaxed);
    }

    /// Takes in how long a transfer took; of two at once, one may be lost.
    fn learn(&self, index: usize, report: &TransferReport, distance: Distance) {
        let load = Load { bytes: report.bytes, ranges: report.chunks };
        let pace = Pace::from_bits(self.paces[index].load(Ordering::Relaxed));
        let pace = pace.after(modelled(report.backend, distance, load), report.elapsed);
        self.paces[index].store(pace.to_bits(), Ordering::Relaxed);
    }

    /// Returns how transfers by `backend` compare to the model.
    pub(crate) fn pace(&self, backend: BackendKind) -> Pace {
        let bits = index(backend).map(|index| self.paces[index].load(Ordering::Relaxed));
        bits.map_or(Pace::MODELLED, Pace::from_bits)
    }

    pub(crate) fn read(&self, regions: usize) -> TransferStats {
        let read = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        TransferStats {
            // What is settled was posted: read first, so that nothing is in flight below zero.
            completed_total: read(&self.completed),
            failed_total: read(&self.failed),
            cancelled_total: read(&self.cancelled),
            posted_total: read(&self.posted),
            completed_by: std::array::from_fn(|index| read(&self.completed_by[index])),
            bytes_total: std::array::from_fn(|index| read(&self.bytes[index])),
            elapsed_total: std::array::from_fn(|index| {
                Duration::from_nanos(read(&self.elapsed_ns[index]))
            }),
            regions,
        }
    }
}

fn index(backend: BackendKind) -> Option<usize> {
    BackendKind::ALL.iter().position(|kind| *kind == backend)
}
