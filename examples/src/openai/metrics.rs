use std::fmt::Write as _;
use std::sync::Mutex;
use std::sync::PoisonError;
use std::sync::atomic::{AtomicI64, AtomicU64, Ordering};
use std::time::Duration;

/// What the front end counts; rendered in Prometheus' text format.
#[derive(Debug, Default)]
pub struct Metrics {
    /// (route, status) → requests.
    requests: Mutex<std::collections::BTreeMap<(&'static str, u16), u64>>,
    inflight: AtomicI64,
    prompt_tokens: AtomicU64,
    cached_tokens: AtomicU64,
    completion_tokens: AtomicU64,
    first_tokens: Timing,
    inter_tokens: Timing,
}

/// A sum and a count of times.
#[derive(Debug, Default)]
struct Timing {
    micros: AtomicU64,
    count: AtomicU64,
}

impl Timing {
    fn add(&self, time: Duration) {
        self.micros
            .fetch_add(u64::try_from(time.as_micros()).unwrap_or(u64::MAX), Ordering::Relaxed);
        self.count.fetch_add(1, Ordering::Relaxed);
    }
}

impl Metrics {
    pub(super) fn request(&self, route: &'static str, status: u16) {
        let mut requests = self.requests.lock().unwrap_or_else(PoisonError::into_inner);
        *requests.entry((route, status)).or_default() += 1;
    }

    pub(super) fn started(&self) {
        self.inflight.fetch_add(1, Ordering::Relaxed);
    }

    pub(super) fn ended(&self) {
        self.inflight.fetch_sub(1, Ordering::Relaxed);
    }

    pub(super) fn first_token(&self, time: Duration) {
        self.first_tokens.add(time);
    }

    pub(super) fn next_token(&self, time: Duration) {
        self.inter_tokens.add(time);
    }

    pub(super) fn usage(&self, usage: dynamo_core::protocol::Usage) {
        for (counter, tokens) in [
            (&self.prompt_tokens, usage.prompt_tokens),
            (&self.cached_tokens, usage.cached_tokens.unwrap_or(0)),
            (&self.completion_tokens, usage.completion_tokens),
        ] {
            counter.fetch_add(u64::from(tokens), Ordering::Relaxed);
        }
    }

    pub(super) fn render(&self) -> String {
        let mut text = String::new();
        // Writing to a String cannot fail.
        let _ = writeln!(text, "# TYPE dynamo_frontend_requests_total counter");
        let requests = self.requests.lock().unwrap_or_else(PoisonError::into_inner);
        for ((route, status), count) in &*requests {
            let labels = format!("route=\"{route}\",status=\"{status}\"");
            let _ = writeln!(text, "dynamo_frontend_requests_total{{{labels}}} {count}");
        }
        let inflight = self.inflight.load(Ordering::Relaxed);
        let _ = writeln!(text, "# TYPE dynamo_frontend_inflight_requests gauge");
        let _ = writeln!(text, "dynamo_frontend_inflight_requests {inflight}");
        for (name, counter) in [
            ("prompt_tokens", &self.prompt_tokens),
            ("cached_tokens", &self.cached_tokens),
            ("completion_tokens", &self.completion_tokens),
        ] {
            let value = counter.load(Ordering::Relaxed);
            let _ = writeln!(text, "# TYPE dynamo_frontend_{name}_total counter");
            let _ = writeln!(text, "dynamo_frontend_{name}_total {value}");
        }
        for (name, timing) in [
            ("time_to_first_token", &self.first_tokens),
            ("inter_token_latency", &self.inter_tokens),
        ] {
            let sum = Duration::from_micros(timing.micros.load(Ordering::Relaxed)).as_secs_f64();
            let count = timing.count.load(Ordering::Relaxed);
            let _ = writeln!(text, "# TYPE dynamo_frontend_{name}_seconds summary");
            let _ = writeln!(text, "dynamo_frontend_{name}_seconds_sum {sum}");
            let _ = writeln!(text, "dynamo_frontend_{name}_seconds_count {count}");
        }
        text
    }
}
