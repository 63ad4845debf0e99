//! What a transfer is expected to take.

use std::time::Duration;

use crate::descriptor::Load;
use crate::vocabulary::BackendKind;

/// Where a peer is, as far as it changes what a way costs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Distance {
    /// On this host, known by what it tells of it.
    Host,
    /// Behind a network, or nobody knows.
    Network,
}

/// The cost of a backend: so much for a transfer, for each range, and for each byte.
///
/// The figures are those of `cargo xtask bench transfer` on a small machine (`docs/performance.md`): of
/// one range of 4 KiB, of 256 ranges of 1 MiB, and what 16,384 ranges of 4 KiB take beyond their bytes;
/// shared memory is mapped, and TCP's ranges count as a copy at either end. Over a network UCX stands for
/// RDMA over 100 Gbit/s, while on one host it copies by calls of the kernel, at half the rate of shared
/// memory and one call for each range; devices stand for a bus of 25 GB/s. What they are off by is much
/// the same for all transfers of one backend on one machine: [`Pace`] takes it from there.
#[derive(Debug, Clone, Copy)]
struct Cost {
    transfer_ns: u64,
    range_ns: u64,
    byte_ps: u64,
}

impl Cost {
    const fn of(kind: BackendKind, distance: Distance) -> Self {
        let (transfer_ns, range_ns, byte_ps) = match (kind, distance) {
            (BackendKind::Memcpy, _) => (2_000, 70, 120),
            (BackendKind::Shm, _) => (2_500, 90, 125),
            (BackendKind::Ucx, Distance::Host) => (75_000, 1_800, 250),
            (BackendKind::Ucx, Distance::Network) => (20_000, 300, 80),
            (BackendKind::Tcp, _) => (25_000, 150, 280),
            (BackendKind::File, _) => (30_000, 5_000, 500),
            (BackendKind::Device, _) => (20_000, 100, 40),
        };
        Self { transfer_ns, range_ns, byte_ps }
    }
}

/// Returns what a transfer takes by the figures above.
pub(crate) fn modelled(kind: BackendKind, distance: Distance, load: Load) -> Duration {
    let Cost { transfer_ns, range_ns, byte_ps } = Cost::of(kind, distance);
    let ranges = range_ns.saturating_mul(load.ranges);
    let bytes = u128::from(byte_ps) * u128::from(load.bytes) / 1000;
    let bytes = u64::try_from(bytes).unwrap_or(u64::MAX);
    Duration::from_nanos(transfer_ns.saturating_add(ranges).saturating_add(bytes))
}

/// How transfers of a backend have compared to the model so far: a moving average, of which the last
/// eight make up two thirds.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct Pace(f32);

impl Pace {
    pub(crate) const MODELLED: Self = Self(1.0);

    /// Takes in a transfer that has been completed.
    #[must_use]
    #[expect(clippy::cast_possible_truncation, reason = "a ratio")]
    pub(crate) fn after(self, modelled: Duration, taken: Duration) -> Self {
        let ratio = (taken.as_secs_f64() / modelled.as_secs_f64().max(1e-9)) as f32;
        Self(self.0 + (ratio.clamp(PACE_MIN, PACE_MAX) - self.0) / 8.0)
    }

    /// Returns what the next one is expected to take.
    pub(crate) fn expected(self, modelled: Duration) -> Duration {
        modelled.mul_f32(self.0.clamp(PACE_MIN, PACE_MAX))
    }

    pub(crate) fn to_bits(self) -> u32 {
        self.0.to_bits()
    }

    pub(crate) fn from_bits(bits: u32) -> Self {
        Self(f32::from_bits(bits))
    }
}

/// One transfer that was stopped for seconds says nothing of the others.
const PACE_MAX: f32 = 100.0;
const PACE_MIN: f32 = 0.01;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn more_bytes_or_ranges_never_cost_less_and_nothing_overflows() {
        let both = [Distance::Host, Distance::Network];
        for (kind, distance) in
            BackendKind::ALL.into_iter().flat_map(|kind| both.map(|at| (kind, at)))
        {
            let cost = |bytes, ranges| modelled(kind, distance, Load { bytes, ranges });
            assert!(cost(4096, 1) < cost(1 << 20, 1), "{kind}");
            assert!(cost(1 << 20, 1) < cost(1 << 20, 256), "{kind}");
            assert_eq!(cost(u64::MAX, u64::MAX), Duration::from_nanos(u64::MAX), "{kind}");
        }
    }

    #[test]
    fn an_agent_that_is_slower_than_the_model_comes_to_expect_it() {
        let modelled = Duration::from_micros(100);
        let mut pace = Pace::MODELLED;
        assert_eq!(pace.expected(modelled), modelled);
        for _ in 0..40 {
            pace = Pace::from_bits(pace.after(modelled, modelled * 4).to_bits());
        }
        let expected = pace.expected(modelled);
        assert!(expected > modelled * 39 / 10 && expected < modelled * 41 / 10, "{expected:?}");
        let stopped = pace.after(modelled, Duration::from_secs(3600)).expected(modelled);
        assert!(stopped <= modelled * 17, "one of a kind counts little: {stopped:?}");
    }
}
