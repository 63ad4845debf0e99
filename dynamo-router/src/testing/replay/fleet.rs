use std::sync::Arc;
use std::time::Duration;

use dynamo_core::Result;
use dynamo_core::protocol::{HandoffTicket, InstanceId, KvEvent, Stage, WorkerId};
use dynamo_core::time::ManualClock;

use super::agenda::{Agenda, Event, Item};
use super::engine::{Cache, Engine, Output, OutputKind, Part, Pass, Sequence};
use super::policy::{Choice, Chooser};
use super::published::as_events;
use super::report::Course;
use super::trace::TraceRequest;
use super::{Fleet, Policy, Report, Roles, Trace};

/// A replay in progress.
pub(super) struct Running<'a> {
    trace: &'a Trace,
    fleet: &'a Fleet,
    clock: Arc<ManualClock>,
    now: Duration,
    agenda: Agenda,
    pools: Vec<Pool>,
    courses: Vec<Course>,
}

/// The workers of one role.
struct Pool {
    chooser: Chooser,
    workers: Vec<Worker>,
    /// One each, or one for all.
    caches: Vec<Cache>,
    /// The choice of each request that is here.
    choices: Vec<Option<Choice>>,
}

struct Worker {
    engine: Engine,
    /// The cache it uses.
    cache: usize,
    pass: Option<Pass>,
    events_published: u64,
}

impl<'a> Running<'a> {
    pub(super) fn new(trace: &'a Trace, fleet: &'a Fleet, policy: &Policy) -> Result<Self> {
        let clock = Arc::new(ManualClock::new());
        let pool = |workers| Pool::new(trace, fleet, policy, workers, &clock);
        let pools = match fleet.roles {
            Roles::Aggregated { workers } => vec![pool(workers)?],
            Roles::Disaggregated { prefill, decode, .. } => vec![pool(prefill)?, pool(decode)?],
        };
        let mut agenda = Agenda::default();
        for (request, arrival) in trace.requests.iter().enumerate() {
            agenda.push(arrival.at, Item::Arrival { request });
        }
        let courses = trace.requests.iter().map(|request| Course {
            at: request.at,
            prompt_tokens: request.prompt_tokens,
            ..Course::default()
        });
        let courses = courses.collect();
        Ok(Self { trace, fleet, clock, now: Duration::ZERO, agenda, pools, courses })
    }

    pub(super) fn run(self) -> Result<Report> {
        let (courses, preemptions) = self.courses()?;
        Ok(Report::new(&courses, preemptions))
    }

    /// Returns what became of each request, and how often one had to start anew.
    pub(super) fn courses(mut self) -> Result<(Vec<Course>, u64)> {
        while let Some(at) = self.agenda.next_at() {
            self.clock.advance(at - self.now);
            self.now = at;
            while let Some(item) = self.agenda.pop_until(at) {
                self.happen(item)?;
            }
            self.start_passes();
        }
        let workers = self.pools.iter().flat_map(|pool| &pool.workers);
        let preemptions = workers.map(|worker| worker.engine.preemptions()).sum();
        Ok((self.courses, preemptions))
    }

    fn happen(&mut self, item: Item) -> Result<()> {
        match item {
            Item::Arrival { request } => self.arrive(request),
            Item::Heard { pool, event } => {
                self.pools[pool].chooser.apply(&event.0);
                Ok(())
            }
            Item::Pulled { request } => {
                self.submit(DECODE, request);
                Ok(())
            }
            Item::PassEnd { pool, worker } => self.end_pass(pool, worker),
        }
    }

    fn arrive(&mut self, request: usize) -> Result<()> {
        let stage = if self.is_split(request) { Stage::Prefill } else { Stage::Full };
        self.choose(FIRST, request, stage)?;
        self.submit(FIRST, request);
        Ok(())
    }

    /// Tells whether the request's answer goes on at another worker.
    fn is_split(&self, request: usize) -> bool {
        self.pools.len() > 1 && self.trace.requests[request].output_tokens > 1
    }

    fn choose(&mut self, index: usize, request: usize, stage: Stage) -> Result<()> {
        let pool = &mut self.pools[index];
        let choice = pool.chooser.choose(&self.trace.requests[request], stage)?;
        self.courses[request].workers[index] = Some(choice.worker);
        pool.choices[request] = Some(choice);
        Ok(())
    }

    fn submit(&mut self, pool: usize, request: usize) {
        let is_split = self.is_split(request);
        let TraceRequest { blocks, prompt_tokens, output_tokens, .. } =
            &self.trace.requests[request];
        let part = match pool {
            FIRST if is_split => Part::Whole { tokens: 1 },
            FIRST => Part::Whole { tokens: *output_tokens },
            _ => Part::Rest { tokens: output_tokens - 1 },
        };
        let pool = &mut self.pools[pool];
        if let Some(choice) = &pool.choices[request] {
            let sequence = Sequence::new(request, Arc::clone(blocks), *prompt_tokens, part);
            pool.workers[choice.worker].engine.submit(sequence);
        }
    }

    fn start_passes(&mut self) {
        for (index, pool) in self.pools.iter_mut().enumerate() {
            let Pool { workers, caches, .. } = pool;
            for (number, worker) in workers.iter_mut().enumerate() {
                if worker.pass.is_some() || !worker.engine.has_work() {
                    continue;
                }
                worker.pass = worker.engine.pass(&mut caches[worker.cache]);
                if let Some(pass) = &worker.pass {
                    let end = Item::PassEnd { pool: index, worker: number };
                    self.agenda.push(self.now + pass.takes, end);
                }
            }
        }
    }

    fn end_pass(&mut self, pool: usize, worker: usize) -> Result<()> {
        let outputs = self.pools[pool].workers[worker].pass.take().map(|pass| pass.outputs);
        self.publish(pool, worker);
        for output in outputs.into_iter().flatten() {
            self.take_output(pool, output)?;
        }
        Ok(())
    }

    /// Tells the router what the pass has changed in the cache.
    fn publish(&mut self, index: usize, number: usize) {
        let pool = &mut self.pools[index];
        let worker = &mut pool.workers[number];
        for change in as_events(pool.caches[worker.cache].take_changes()) {
            let of = WorkerId::new(InstanceId(number as u64));
            let event = KvEvent { worker: of, epoch: 0, seq: worker.events_published, change };
            worker.events_published += 1;
            let heard = Item::Heard { pool: index, event: Event(event) };
            self.agenda.push(self.now + self.fleet.event_lag, heard);
        }
    }

    fn take_output(&mut self, pool: usize, output: Output) -> Result<()> {
        let Output { request, kind } = output;
        let course = &mut self.courses[request];
        let is_last = match kind {
            OutputKind::Refused => {
                course.is_refused = true;
                true
            }
            OutputKind::Token { cached_tokens, is_last } => {
                course.tokens += 1;
                course.last = self.now;
                let is_first = course.first.is_none();
                if is_first {
                    course.first = Some(self.now);
                    course.cached_tokens = cached_tokens;
                }
                if pool == DECODE {
                    // What the prefill worker staged has arrived.
                    self.leave(FIRST, request);
                }
                let Pool { chooser, choices, .. } = &mut self.pools[pool];
                match &mut choices[request] {
                    Some(choice) if is_first => chooser.first_token(choice),
                    Some(choice) => Chooser::token(choice),
                    None => {}
                }
                is_last
            }
        };
        if !is_last {
            return Ok(());
        }
        if pool == FIRST && self.is_split(request) && kind != OutputKind::Refused {
            return self.hand_off(request);
        }
        self.leave(pool, request);
        Ok(())
    }

    fn leave(&mut self, pool: usize, request: usize) {
        let Pool { chooser, choices, .. } = &mut self.pools[pool];
        if let Some(choice) = choices[request].take() {
            chooser.end(choice);
        }
    }

    /// Finds a decode worker, which pulls what it has not.
    fn hand_off(&mut self, request: usize) -> Result<()> {
        let ticket = HandoffTicket::new(Vec::new());
        self.choose(DECODE, request, Stage::Decode { ticket, first_token: 0 })?;
        let pool = &self.pools[DECODE];
        let worker = pool.choices[request].as_ref().map_or(0, |choice| choice.worker);
        let TraceRequest { blocks, prompt_tokens, .. } = &self.trace.requests[request];
        let (found, _) = pool.caches[pool.workers[worker].cache].find(blocks.sequence());
        let pulled = prompt_tokens - found * self.trace.block_size.tokens();
        self.agenda.push(self.now + self.fleet.link_time(pulled), Item::Pulled { request });
        Ok(())
    }
}

impl Pool {
    fn new(
        trace: &Trace,
        fleet: &Fleet,
        policy: &Policy,
        workers: usize,
        clock: &Arc<ManualClock>,
    ) -> Result<Self> {
        let workers = workers.max(1);
        let blocks = fleet.engine.cache_tokens / trace.block_size.tokens();
        let is_shared = matches!(policy, Policy::SharedCache);
        let caches = if is_shared {
            vec![Cache::new(blocks * workers)]
        } else {
            (0..workers).map(|_| Cache::new(blocks)).collect()
        };
        let worker = |number| Worker {
            engine: Engine::new(fleet.engine),
            cache: if is_shared { 0 } else { number },
            pass: None,
            events_published: 0,
        };
        Ok(Self {
            chooser: Chooser::new(policy, workers, Arc::clone(clock))?,
            workers: (0..workers).map(worker).collect(),
            caches,
            choices: trace.requests.iter().map(|_| None).collect(),
        })
    }
}

/// The pool that a request comes to, and the one that goes on with it where there are two.
const FIRST: usize = 0;
const DECODE: usize = 1;
