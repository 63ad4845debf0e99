//! What is seen between migration and client: which part of an answer failed, where and when.

use std::collections::{HashMap, HashSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use dynamo_core::engine::Ending;
use dynamo_core::protocol::{GenerateChunk, GenerateRequest, InstanceId};
use dynamo_core::{Client, Context, Engine, RequestId, ResponseStream, Result};
use tokio::time::Instant;

/// A client whose failures are noted.
pub(crate) struct Observed {
    pub(crate) client: Client<GenerateRequest, GenerateChunk>,
    pub(crate) log: Log,
}

/// Faults and failures, and when they were; cheap to clone.
#[derive(Clone, Default)]
pub(crate) struct Log(Arc<Mutex<Noted>>);

#[derive(Default)]
struct Noted {
    faults: HashMap<&'static str, Vec<(InstanceId, Instant)>>,
    failures: HashMap<InstanceId, Vec<Failure>>,
    touched: HashSet<RequestId>,
}

struct Failure {
    started: Instant,
    failed: Instant,
}

impl Log {
    /// Notes what is done to an instance.
    pub(crate) fn fault(&self, name: &'static str, instance: InstanceId, at: Instant) {
        self.lock().faults.entry(name).or_default().push((instance, at));
    }

    /// Tells whether a part of an answer failed, and forgets it.
    pub(crate) fn take_touched(&self, request: &RequestId) -> bool {
        self.lock().touched.remove(request)
    }

    /// Returns how long after a fault each stream failed that ran then.
    pub(crate) fn detections_ms(&self, name: &str) -> Vec<f64> {
        let noted = self.lock();
        let mut times = Vec::new();
        let faults = noted.faults.get(name).into_iter().flatten();
        // An instance that came back may fail a second time, by another fault.
        let mut faults: Vec<_> = faults.collect();
        faults.sort_by_key(|(_, at)| std::cmp::Reverse(*at));
        let mut seen = HashSet::new();
        for (instance, at) in faults {
            for (number, failure) in noted.failures.get(instance).into_iter().flatten().enumerate()
            {
                if failure.started < *at
                    && *at <= failure.failed
                    && seen.insert((*instance, number))
                {
                    times.push((failure.failed - *at).as_secs_f64() * 1e3);
                }
            }
        }
        times
    }

    fn failed(&self, ctx: &Context, instance: Option<InstanceId>, started: Instant) {
        let Some(instance) = instance else { return };
        let failure = Failure { started, failed: Instant::now() };
        let mut noted = self.lock();
        noted.failures.entry(instance).or_default().push(failure);
        noted.touched.insert(ctx.id().clone());
    }

    fn lock(&self) -> MutexGuard<'_, Noted> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Engine for Observed {
    type Request = GenerateRequest;
    type Response = GenerateChunk;

    async fn generate(
        &self,
        ctx: Context,
        request: GenerateRequest,
    ) -> Result<ResponseStream<GenerateChunk>> {
        let started = Instant::now();
        let answer = self.client.generate(ctx.clone(), request).await;
        // The client notes whom it asks, for the attempts of this request know of each other.
        let instance = ctx.tried().last().copied();
        let log = self.log.clone();
        match answer {
            Ok(stream) => Ok(stream.on_end(move |course| {
                if let Ending::Failed(_) = course.ending {
                    log.failed(&ctx, instance, started);
                }
            })),
            Err(error) => {
                log.failed(&ctx, instance, started);
                Err(error)
            }
        }
    }
}
