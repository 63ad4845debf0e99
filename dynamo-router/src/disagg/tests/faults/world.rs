use std::collections::BTreeMap;
use std::sync::Mutex;

use dynamo_core::protocol::TokenId;
use dynamo_core::random::Random;
use tokio::sync::oneshot;
use tokio_util::task::TaskTracker;

use super::*;

/// What all workers of a graph share: chance, what is staged, and who was asked for what.
pub(super) struct World {
    chance: Mutex<Chance>,
    staged: Mutex<BTreeMap<u64, Staged>>,
    /// Request and stage of every call, in order.
    pub(super) calls: Mutex<Vec<(String, Stage)>>,
    pub(super) wrong: Mutex<Vec<String>>,
    pub(super) tasks: TaskTracker,
}

struct Chance {
    random: Random,
    fault_percent: usize,
    faults_left: usize,
    tickets: u64,
}

/// What a prefill worker holds for a decode worker.
pub(super) struct Staged {
    pub(super) prompt: Vec<TokenId>,
    pub(super) first_token: TokenId,
    /// Tells the prefill worker that it was pulled.
    pulled: oneshot::Sender<()>,
}

/// Lets go of what is staged when the prefill ends.
pub(super) struct Hold {
    world: Arc<World>,
    pub(super) ticket: u64,
}

/// What becomes of a call.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) enum Fate {
    Well,
    /// It is refused.
    Refused(ErrorKind, bool),
    /// It says so many chunks, and fails.
    Fails(usize, ErrorKind),
    /// It says so many chunks, and nothing more.
    Silent(usize),
    /// It says so many chunks, and ends as if that were all.
    Ends(usize),
    /// It says everything, and fails before its end.
    FailsAtTheEnd,
    /// A prefill that comes without a ticket, or with one that is of no use.
    NoTicket,
    BadTicket,
    StaleTicket,
    /// A prefill worker that lets go of what it holds, in order or not, soon after it said so.
    Lapses,
    FailsLate,
}

impl World {
    pub(super) fn new(plan: &Plan) -> Self {
        let random = Random::new(!plan.seed);
        let (fault_percent, faults_left) = (plan.fault_percent, plan.faults_max);
        Self {
            chance: Mutex::new(Chance { random, fault_percent, faults_left, tickets: 0 }),
            staged: Mutex::default(),
            calls: Mutex::default(),
            wrong: Mutex::default(),
            tasks: TaskTracker::new(),
        }
    }

    pub(super) fn below(&self, count: usize) -> usize {
        self.chance.lock().unwrap().random.below(count).unwrap()
    }

    /// Takes a moment.
    pub(super) async fn pause(&self) {
        let millis = self.below(40) as u64;
        tokio::time::sleep(Duration::from_millis(millis)).await;
    }

    pub(super) fn fate(&self, stage: &Stage) -> Fate {
        let mut chance = self.chance.lock().unwrap();
        let percent = chance.random.below(100).unwrap();
        if chance.faults_left == 0 || percent >= chance.fault_percent {
            return Fate::Well;
        }
        chance.faults_left -= 1;
        let random = &mut chance.random;
        let kind = DEATHS[random.below(DEATHS.len()).unwrap()];
        let chunks = random.below(4).unwrap();
        let common = [
            Fate::Refused(ErrorKind::Unavailable, true),
            Fate::Refused(ErrorKind::Overloaded, true),
            Fate::Refused(kind, false),
            Fate::Fails(0, kind),
            Fate::Silent(0),
        ];
        let own = match stage {
            Stage::Prefill => {
                [Fate::NoTicket, Fate::BadTicket, Fate::StaleTicket, Fate::Lapses, Fate::FailsLate]
            }
            _ => [
                Fate::Fails(chunks, kind),
                Fate::Fails(chunks, ErrorKind::Unavailable),
                Fate::Silent(chunks),
                Fate::Ends(chunks),
                Fate::FailsAtTheEnd,
            ],
        };
        let which = random.below(10).unwrap();
        if which < 5 { common[which] } else { own[which - 5] }
    }

    pub(super) fn stage(
        self: &Arc<Self>,
        prompt: Vec<TokenId>,
        first_token: TokenId,
    ) -> (Hold, oneshot::Receiver<()>) {
        let mut chance = self.chance.lock().unwrap();
        chance.tickets += 1;
        let ticket = chance.tickets;
        let (pulled, settled) = oneshot::channel();
        self.staged.lock().unwrap().insert(ticket, Staged { prompt, first_token, pulled });
        (Hold { world: Arc::clone(self), ticket }, settled)
    }

    pub(super) fn look<T>(&self, ticket: u64, look: impl FnOnce(&Staged) -> T) -> Option<T> {
        self.staged.lock().unwrap().get(&ticket).map(look)
    }

    /// Ends a hold as pulled; tells whether it still stood.
    pub(super) fn pulled(&self, ticket: u64) -> bool {
        let staged = self.staged.lock().unwrap().remove(&ticket);
        staged.is_some_and(|staged| staged.pulled.send(()).is_ok())
    }

    pub(super) fn staged(&self) -> usize {
        self.staged.lock().unwrap().len()
    }

    pub(super) fn wrong(&self, what: &str) {
        self.wrong.lock().unwrap().push(what.to_owned());
    }
}

impl Drop for Hold {
    fn drop(&mut self) {
        self.world.staged.lock().unwrap().remove(&self.ticket);
    }
}

const DEATHS: [ErrorKind; 6] = [
    ErrorKind::Unavailable,
    ErrorKind::Overloaded,
    ErrorKind::Closed,
    ErrorKind::Cancelled,
    ErrorKind::DeadlineExceeded,
    ErrorKind::Internal,
];
