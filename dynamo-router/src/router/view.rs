//! What the queue before a router and the exchange beside it ask of it.

use dynamo_core::protocol::{GenerateRequest, WorkerId};
use dynamo_core::{Instance, Priority};

use super::scratch::Scratch;
use super::{Constraints, KvRouter};
use crate::choose::{CandidateCost, Stickiness};
use crate::load::Load;
use crate::workers::{is_in, ranks};

impl KvRouter {
    /// Tells of each worker that can be chosen how busy it is, and how long it will take to prefill what
    /// waits there, in seconds.
    pub(crate) fn each_queue(&self, mut tell: impl FnMut(WorkerId, Load, f64)) {
        let (now, fleet) = (self.0.common.now_ns(), self.0.fleet.load());
        let paced = self.0.common.pace.get();
        for seat in fleet.seats() {
            let row = &seat.load;
            let load = row.load(row.booked(), now, self.0.report_max_ns);
            let rate = row.speed().among(paced.prefill).unwrap_or(self.0.cost.prefill_s_per_token);
            tell(seat.worker(), load, load.prefill_tokens as f64 * rate);
        }
    }

    /// Tells whether all workers that `constraints` leave are among `busy`, each of which is named
    /// once; not if they leave none at all.
    pub(crate) fn is_held(&self, constraints: &Constraints<'_>, busy: &[WorkerId]) -> bool {
        let fleet = self.0.fleet.load();
        let count = fleet.count();
        let Constraints { exclude, only, pinned, session, required, .. } = *constraints;
        let is_kept = session.is_some() && self.affinity().stickiness() == Stickiness::Hard;
        let may_be_any = exclude.is_empty() && only.is_none() && pinned.is_none();
        if may_be_any && required.is_empty() && !is_kept && busy.len() < count {
            return false;
        }
        self.0.scratches.lend(|Scratch { columns, .. }| {
            let eligible = &mut columns.eligible;
            constraints.admit(&fleet, eligible);
            let is_open = |worker| fleet.find(worker).is_some_and(|at| is_in(eligible, at));
            if is_kept
                && let Some((home, _)) = self.home(&fleet, constraints)
                && is_open(home)
            {
                return busy.contains(&home);
            }
            let busy = busy.iter().filter_map(|worker| fleet.find(*worker));
            let busy = busy.filter(|position| is_in(eligible, *position)).count();
            let left = eligible.iter().map(|word| word.count_ones() as usize).sum::<usize>();
            left > 0 && busy == left
        })
    }

    /// Tells whether prefixes are known by what was decided, and no events are awaited.
    pub(crate) fn is_decided(&self) -> bool {
        self.0.common.expected.is_decided()
    }

    /// Returns how many workers can be chosen.
    pub(crate) fn worker_count(&self) -> usize {
        self.0.fleet.load().count()
    }

    /// Returns the ranks of an instance: those that can be chosen or, if none can, as many as it says.
    pub(crate) fn ranks(&self, instance: &Instance) -> u32 {
        let seated = self.0.fleet.load().ranks(instance.id).count();
        let seated = u32::try_from(seated).ok().filter(|seated| *seated > 0);
        seated.unwrap_or_else(|| ranks(instance).unwrap_or(1))
    }

    /// Returns how many tokens of the request's prompt some worker has cached, at most.
    pub(crate) fn longest_prefix(&self, request: &GenerateRequest) -> usize {
        self.0.scratches.lend(|scratch| {
            self.find(request, self.0.common.now_ns(), scratch);
            let blocks = scratch.matches.iter().map(|(_, depth)| depth).max().unwrap_or(0);
            blocks * request.blocks.block_size().tokens()
        })
    }

    /// Returns what is minimised, in seconds, of a worker that this router has weighed for a request of
    /// `priority`.
    pub(crate) fn total_s(&self, cost: &CandidateCost, priority: Priority) -> f64 {
        cost.total_s(&self.0.cost.for_priority(priority))
    }

    /// Returns what this router has booked, on each worker that it has booked anything on.
    pub(crate) fn booked(&self) -> Vec<(WorkerId, Load)> {
        let members = self.members();
        let all = members.all().map(|seat| (seat.worker(), seat.load.own()));
        let mut booked: Vec<_> = all.filter(|(_, load)| load.requests > 0).collect();
        booked.sort_unstable_by_key(|(worker, _)| *worker);
        booked
    }

    /// Takes in what other routers have booked on some workers; of those that this one knows.
    pub(crate) fn set_others(&self, loads: impl IntoIterator<Item = (WorkerId, Load)>) {
        for (worker, load) in loads {
            if let Some(seat) = self.known(worker)
                && seat.load.set_others(load)
            {
                self.0.common.released(worker);
            }
        }
    }

    /// Takes in that other routers have booked nothing.
    pub(crate) fn forget_others(&self) {
        let seats: Vec<_> = self.members().all().collect();
        for seat in seats {
            if seat.load.set_others(Load::default()) {
                self.0.common.released(seat.worker());
            }
        }
    }
}
