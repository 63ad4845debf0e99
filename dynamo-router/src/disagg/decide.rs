//! Local or remote prefill: the routers' costs side by side.

use std::fmt;

use dynamo_core::protocol::{GenerateRequest, HandoffTicket, InstanceId, Stage};

use super::PrefillDecode;
use super::config::{DisaggConfig, Fallback, Split};
use super::journey::{Journey, Tried, Zone};
use crate::router::Decision;

/// Where a request is prefilled, and why.
#[derive(Debug, Clone, Copy, PartialEq)]
#[non_exhaustive]
pub struct SplitExplain {
    /// Where it is prefilled.
    pub place: PrefillPlace,
    /// What decided.
    pub reason: SplitReason,
    /// The costs; of what was not looked at there is none.
    pub costs: SplitCosts,
}

/// Who prefills a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PrefillPlace {
    /// The worker that decodes it.
    Local,
    /// A prefill worker, which hands the blocks over.
    Remote,
}

/// What decided where a request is prefilled.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum SplitReason {
    /// The costs.
    Cost,
    /// The configuration.
    Configured,
    /// There is no prefill worker, or none that has not failed this request.
    NoPrefillWorker,
    /// There is no decode worker to weigh against.
    NoDecodeWorker,
    /// A prefill worker or a hand-off has failed the request.
    Fallback,
}

/// What each way costs, in seconds as [`CandidateCost::total_s`](crate::CandidateCost::total_s)
/// counts them: the time to the first token and the weighed harm to others.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct SplitCosts {
    /// On the best decode worker: its queue, what it has not cached, and what that stops there.
    pub local_s: Option<f64>,
    /// On the best prefill worker, likewise.
    pub prefill_s: Option<f64>,
    /// On the decode worker that would get the blocks: its queue, and what it lacks of them.
    pub transfer_s: Option<f64>,
}

/// Decides by `config` and `costs`.
///
/// ```text
/// remote = prefill + transfer, against local; at the same cost local, for it moves nothing
/// ```
pub(super) fn decide(config: &DisaggConfig, costs: SplitCosts) -> SplitExplain {
    use PrefillPlace::{Local, Remote};
    use SplitReason::{Configured, Cost, NoDecodeWorker, NoPrefillWorker};
    let (place, reason) = match (config.split, costs.local_s, costs.prefill_s) {
        (Split::Never, ..) => (Local, Configured),
        (Split::Always, _, None) if config.fallback < Fallback::LocalPrefill => {
            (Remote, Configured)
        }
        (_, _, None) => (Local, NoPrefillWorker),
        (Split::Always, ..) => (Remote, Configured),
        (Split::ByCost, None, Some(_)) => (Remote, NoDecodeWorker),
        (Split::ByCost, Some(local_s), Some(prefill_s)) => {
            let is_less = prefill_s + costs.transfer_s.unwrap_or(0.0) < local_s;
            (if is_less { Remote } else { Local }, Cost)
        }
    };
    SplitExplain { place, reason, costs }
}

impl Journey {
    /// Weighs both ways and decides; books the worker of the one, if there is one.
    pub(super) fn decide(&self, request: &GenerateRequest) -> (SplitExplain, Option<Decision>) {
        let PrefillDecode { prefill, decode, config, .. } = &self.engine;
        let (tried, mut costs) = (self.tried(|tried| tried.clone()), SplitCosts::default());
        if tried.has_handoff_failed && config.fallback == Fallback::LocalPrefill {
            let (place, reason) = (PrefillPlace::Local, SplitReason::Fallback);
            return (SplitExplain { place, reason, costs }, None);
        }
        let weigh_prefill = || {
            let constraints = self.constraints(&tried.prefill, None);
            prefill.weigh(&request.with_stage(Stage::Prefill), &constraints)
        };
        let remote = (config.split != Split::Never).then(weigh_prefill).and_then(Result::ok);
        costs.prefill_s = remote.as_ref().map(|decision| self.total_s(prefill, decision));
        let mut local = None;
        if let (Split::ByCost, Some(remote)) = (config.split, &remote) {
            // Each is booked for itself: the one does not wait for the other.
            costs.transfer_s = self.transfer_s(request, remote.worker.instance, &tried);
            local = decode.weigh(request, &self.constraints(&tried.decode, None)).ok();
            costs.local_s = local.as_ref().map(|decision| self.total_s(decode, decision));
        }
        let explain = decide(config, costs);
        match explain.place {
            PrefillPlace::Local => (explain, local),
            PrefillPlace::Remote => (explain, remote),
        }
    }

    /// Returns what the decode half of a split costs, if there is a decode worker; a single token
    /// needs none.
    fn transfer_s(
        &self,
        request: &GenerateRequest,
        prefills: InstanceId,
        tried: &Tried,
    ) -> Option<f64> {
        if request.sampling.max_tokens <= 1 {
            return Some(0.0);
        }
        // The ticket is not there yet, and nobody is sent this one.
        let (ticket, first_token) = (HandoffTicket::new(Vec::new()), 0);
        let half = request.with_stage(Stage::Decode { ticket, first_token });
        let zone = self.zone(prefills);
        let near = zone.as_ref().map(Zone::preference);
        let constraints = self.constraints(&tried.decode, near.as_ref());
        let decode = &self.engine.decode;
        let decision = decode.weigh(&half, &constraints).ok()?;
        Some(self.total_s(decode, &decision))
    }
}

impl fmt::Display for SplitExplain {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self.place {
            PrefillPlace::Local => "local",
            PrefillPlace::Remote => "remote",
        })?;
        match (self.reason, self.costs) {
            (
                SplitReason::Cost,
                SplitCosts { local_s: Some(local), prefill_s: Some(prefill), transfer_s },
            ) => {
                let transfer = transfer_s.unwrap_or(0.0);
                write!(
                    f,
                    ": {local:.3} s here, {prefill:.3} s and {transfer:.3} s of transfer there"
                )
            }
            (SplitReason::Cost, _) => Ok(()),
            (SplitReason::Configured, _) => f.write_str(", as configured"),
            (SplitReason::NoPrefillWorker, _) => f.write_str(": no prefill worker is left"),
            (SplitReason::NoDecodeWorker, _) => f.write_str(": no decode worker is left"),
            (SplitReason::Fallback, _) => f.write_str(": the other way has failed"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn costs(local_s: Option<f64>, prefill_s: Option<f64>, transfer_s: f64) -> SplitCosts {
        SplitCosts { local_s, prefill_s, transfer_s: Some(transfer_s) }
    }

    #[test]
    fn the_cheaper_way_is_taken_and_at_the_same_cost_the_one_that_moves_nothing() {
        use PrefillPlace::{Local, Remote};
        for (local, prefill, transfer, place) in [
            (1.0, 0.5, 0.4, Remote),
            (1.0, 0.5, 0.5, Local),
            (1.0, 0.5, 0.6, Local),
            (f64::NAN, 0.5, 0.1, Local),
        ] {
            let costs = costs(Some(local), Some(prefill), transfer);
            let explain = decide(&DisaggConfig::default(), costs);
            assert_eq!((explain.place, explain.reason), (place, SplitReason::Cost), "{explain}");
        }
    }

    #[test]
    fn what_is_configured_holds_as_long_as_there_is_a_worker_for_it() {
        use Fallback::{Fail, LocalPrefill, OtherWorker};
        use PrefillPlace::{Local, Remote};
        use SplitReason::{Configured, NoDecodeWorker, NoPrefillWorker};
        let cheap_local = costs(Some(0.1), Some(5.0), 5.0);
        let cheap_remote = costs(Some(5.0), Some(0.1), 0.1);
        let no_prefill = costs(Some(1.0), None, 0.0);
        let no_decode = costs(None, Some(1.0), 0.0);
        for (split, fallback, costs, expected) in [
            (Split::Always, LocalPrefill, cheap_local, (Remote, Configured)),
            (Split::Never, LocalPrefill, cheap_remote, (Local, Configured)),
            (Split::Always, LocalPrefill, no_prefill, (Local, NoPrefillWorker)),
            (Split::Always, OtherWorker, no_prefill, (Remote, Configured)),
            (Split::Always, Fail, no_prefill, (Remote, Configured)),
            (Split::ByCost, Fail, no_prefill, (Local, NoPrefillWorker)),
            (Split::ByCost, LocalPrefill, no_decode, (Remote, NoDecodeWorker)),
            (Split::ByCost, Fail, SplitCosts::default(), (Local, NoPrefillWorker)),
        ] {
            let config = DisaggConfig::default().with_split(split).with_fallback(fallback);
            let explain = decide(&config, costs);
            assert_eq!((explain.place, explain.reason), expected, "{split:?} {fallback:?}");
        }
    }

    #[test]
    fn the_explanation_names_the_figures() {
        let explain = decide(&DisaggConfig::default(), costs(Some(1.0), Some(0.25), 0.125));
        let text = explain.to_string();
        assert_eq!(text, "remote: 1.000 s here, 0.250 s and 0.125 s of transfer there");
    }
}
