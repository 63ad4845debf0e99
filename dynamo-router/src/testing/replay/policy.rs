use std::collections::BTreeMap;
use std::sync::Arc;

use dynamo_core::discovery::Address;
use dynamo_core::name::{EndpointPath, Name};
use dynamo_core::protocol::{
    CacheNamespace, GenerateRequest, InstanceId, KvEvent, Sampling, Stage,
};
use dynamo_core::random::Random;
use dynamo_core::time::ManualClock;
use dynamo_core::{Instance, Result};

use super::trace::TraceRequest;
use crate::router::{Constraints, Decision, KvRouter, RouterConfig};

/// Who chooses the worker of a request.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub enum Policy {
    /// The router of this crate.
    Kv(Box<RouterConfig>),
    /// One after another.
    RoundRobin,
    /// Any.
    Random,
    /// The one with the fewest prompt tokens that wait for their first token, and of these the one
    /// with the fewest requests.
    LeastLoaded,
    /// As least loaded, with one cache as large as all together that every worker reads: what no
    /// choice can exceed.
    SharedCache,
}

impl Policy {
    /// Returns the word for it in tables.
    pub fn name(&self) -> &'static str {
        match self {
            Self::Kv(_) => "ours",
            Self::RoundRobin => "round robin",
            Self::Random => "random",
            Self::LeastLoaded => "least loaded",
            Self::SharedCache => "shared cache",
        }
    }
}

/// A policy at work over the workers of one role.
#[derive(Debug)]
pub(super) enum Chooser {
    Kv { router: KvRouter, candidates: Vec<Instance> },
    Plain { policy: Policy, loads: Vec<Queued>, next: usize, random: Random },
}

/// What waits on a worker: prompt tokens, then requests.
pub(super) type Queued = (usize, usize);

/// The choice for one request; it lives as long as the request does on that worker.
#[derive(Debug)]
pub(super) struct Choice {
    /// The number of the worker within its role.
    pub(super) worker: usize,
    decision: Option<Decision>,
    waiting_tokens: usize,
}

impl Chooser {
    pub(super) fn new(policy: &Policy, workers: usize, clock: Arc<ManualClock>) -> Result<Self> {
        if let Policy::Kv(config) = policy {
            let router = KvRouter::new(RouterConfig::clone(config), clock);
            let candidates: Vec<_> = (0..workers).map(instance).collect::<Result<_>>()?;
            router.set_workers(&candidates)?;
            return Ok(Self::Kv { router, candidates });
        }
        let loads = vec![(0, 0); workers];
        Ok(Self::Plain { policy: policy.clone(), loads, next: 0, random: Random::new(SEED) })
    }

    pub(super) fn choose(&mut self, request: &TraceRequest, stage: Stage) -> Result<Choice> {
        match self {
            Self::Kv { router, candidates } => {
                let decision = router.route(&message(request, stage), &Constraints::default())?;
                let chosen = decision.worker.instance;
                let worker = candidates.iter().position(|worker| worker.id == chosen).unwrap_or(0);
                Ok(Choice { worker, decision: Some(decision), waiting_tokens: 0 })
            }
            Self::Plain { policy, loads, next, random } => {
                let worker = match policy {
                    Policy::RoundRobin => *next % loads.len(),
                    Policy::Random => random.below(loads.len()).unwrap_or(0),
                    _ => least(loads, random),
                };
                *next += 1;
                loads[worker].0 += request.prompt_tokens;
                loads[worker].1 += 1;
                Ok(Choice { worker, decision: None, waiting_tokens: request.prompt_tokens })
            }
        }
    }

    /// Takes in that the request has its first token.
    pub(super) fn first_token(&mut self, choice: &mut Choice) {
        match (self, &mut choice.decision) {
            (Self::Kv { router, .. }, Some(decision)) => {
                router.observe_first_token(decision);
                decision.booking.progress(1);
            }
            (Self::Plain { loads, .. }, _) => {
                loads[choice.worker].0 -= std::mem::take(&mut choice.waiting_tokens);
            }
            _ => {}
        }
    }

    /// Takes in a further token.
    pub(super) fn token(choice: &mut Choice) {
        if let Some(decision) = &mut choice.decision {
            decision.booking.progress(1);
        }
    }

    /// Takes in that the request has left its worker.
    pub(super) fn end(&mut self, mut choice: Choice) {
        if let Self::Plain { loads, .. } = self {
            loads[choice.worker].0 -= std::mem::take(&mut choice.waiting_tokens);
            loads[choice.worker].1 -= 1;
        }
    }

    pub(super) fn apply(&self, event: &KvEvent) {
        if let Self::Kv { router, .. } = self {
            router.apply(event);
        }
    }
}

fn least(loads: &[Queued], random: &mut Random) -> usize {
    let least = loads.iter().min().copied().unwrap_or_default();
    let all: Vec<_> = (0..loads.len()).filter(|&worker| loads[worker] == least).collect();
    all[random.below(all.len()).unwrap_or(0)]
}

/// The message that a front end would send.
pub(super) fn message(request: &TraceRequest, stage: Stage) -> GenerateRequest {
    GenerateRequest {
        // What the tokens are is in the hashes; how many they are is all that is left to tell.
        token_ids: std::iter::repeat_n(0, request.prompt_tokens).collect(),
        blocks: Arc::clone(&request.blocks),
        namespace: Arc::new(CacheNamespace::default()),
        sampling: Sampling::default(),
        stage,
    }
}

fn instance(worker: usize) -> Result<Instance> {
    let name = |name| Name::new(name);
    let endpoint = EndpointPath {
        namespace: name("replay")?,
        component: name("llm")?,
        endpoint: name("generate")?,
    };
    Ok(Instance {
        id: InstanceId(worker as u64),
        incarnation: 0,
        endpoint,
        address: Address(String::new()),
        labels: BTreeMap::new(),
    })
}

const SEED: u64 = 0x5eed;
