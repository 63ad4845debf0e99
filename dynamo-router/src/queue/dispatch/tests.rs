//! What happens between two steps of a queue: a test acts wherever the queue asks for the time or for
//! the workers there are.

use std::sync::OnceLock;

use dynamo_core::Instance;
use dynamo_core::time::{Clock, ManualClock};

use super::*;
use crate::fixtures::{instance, request, worker};
use crate::queue::{BusyThresholds, QueuedRouter, Watermarks};
use crate::router::RouterConfig;

/// A worker is busy from the first prompt token to the last: one prompt each at once.
fn config() -> QueueConfig {
    let marks = Watermarks::new(0.0, 1.0).unwrap();
    QueueConfig::default().with_busy(BusyThresholds::never().with_prefill_tokens(marks))
}

fn arrive(dispatch: &Arc<Dispatch>) -> Arrival {
    let constraints = Constraints::default();
    dispatch.arrive(&Context::new(), &request(0..64), &constraints).unwrap()
}

fn routed(arrival: Arrival) -> Option<Box<Decision>> {
    match arrival {
        Arrival::Routed(decision) => Some(decision),
        Arrival::Waiting(mut waiting) => waiting.answer.try_recv().ok()?.ok().map(Box::new),
    }
}

/// Stands still, and does something as it is asked for the time.
#[derive(Debug)]
struct Acting {
    time: ManualClock,
    act: Mutex<Option<Act>>,
}

/// What is done at the question after so many that are let pass.
struct Act {
    passes: usize,
    /// Tells whether it may be done: not under the lock of whom it calls.
    may: Box<dyn Fn() -> bool + Send>,
    act: Box<dyn FnOnce() + Send>,
}

impl std::fmt::Debug for Act {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Act").field("passes", &self.passes).finish_non_exhaustive()
    }
}

impl Acting {
    fn due(&self) -> Option<Act> {
        let mut act = self.act.lock().unwrap();
        let due = act.take_if(|act| act.passes == 0 && (act.may)());
        if let Some(act) = act.as_mut().filter(|act| (act.may)()) {
            act.passes -= 1;
        }
        due
    }
}

impl Clock for Acting {
    fn now(&self) -> Instant {
        if let Some(due) = self.due() {
            (due.act)();
        }
        self.time.now()
    }
}

#[test]
fn a_worker_that_becomes_free_at_any_moment_of_an_arrival_is_not_missed() {
    let mut waited = 0;
    for passes in 0.. {
        let clock = Arc::new(Acting { time: ManualClock::new(), act: Mutex::default() });
        let router = KvRouter::new(RouterConfig::default(), Arc::clone(&clock) as Arc<dyn Clock>);
        let all: Arc<[Instance]> = [instance(0)].into();
        let queue = QueuedRouter::new(router, move || Arc::clone(&all), config());
        let taken = routed(arrive(&queue.0)).unwrap();
        let dispatch = Arc::clone(&queue.0);
        let may = Box::new(move || dispatch.state.try_lock().is_ok());
        *clock.act.lock().unwrap() = Some(Act { passes, may, act: Box::new(move || drop(taken)) });
        let arrival = arrive(&queue.0);
        let undone = clock.act.lock().unwrap().take();
        if undone.is_some() {
            // It has not come to that: all moments were tried.
            break;
        }
        waited += usize::from(matches!(arrival, Arrival::Waiting(_)));
        assert!(routed(arrival).is_some(), "free after {passes} questions");
    }
    assert!(waited > 0, "never free between the look and the queue");
}

#[test]
fn a_worker_that_joins_while_somebody_looks_at_the_list_before_is_not_missed() {
    let router = KvRouter::new(RouterConfig::default(), Arc::new(ManualClock::new()));
    let all = Arc::new(Mutex::new(vec![instance(0)]));
    let (told, joins) = (Arc::clone(&all), Arc::new(OnceLock::<Arc<Dispatch>>::new()));
    let joining = Arc::clone(&joins);
    let candidates = move || {
        let before: Arc<[Instance]> = told.lock().unwrap().clone().into();
        if before.len() == 1
            && let Some(dispatch) = joining.get()
        {
            told.lock().unwrap().push(instance(1));
            // As whoever is told of it does.
            dispatch.drain();
        }
        before
    };
    let queue = QueuedRouter::new(router, candidates, config());
    let _taken = routed(arrive(&queue.0)).unwrap();
    let Arrival::Waiting(mut waiting) = arrive(&queue.0) else { panic!("nobody is free") };
    assert!(joins.set(Arc::clone(&queue.0)).is_ok());
    queue.look_again();
    let decision = waiting.answer.try_recv().expect("the one that joined is free").unwrap();
    assert_eq!(decision.worker, worker(1));
}
