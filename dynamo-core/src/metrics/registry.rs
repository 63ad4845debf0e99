use std::any::Any;
use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::fmt::{self, Write};
use std::ptr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};

use super::{Kind, Metric, Sample, Source};

/// The sources of one runtime; cheap to clone.
///
/// A name and a set of labels are one series: what several sources say of it is added up. What a
/// source that ends has counted goes with it, so who counts for others that come and go outlives
/// them.
#[derive(Clone, Default)]
pub struct Registry(Arc<Mutex<Sources>>);

#[derive(Default)]
struct Sources {
    /// Somebody else keeps them.
    added: Vec<Weak<dyn Source>>,
    /// Kept here; the one that was asked for last is the last.
    kept: Vec<Kept>,
}

/// A source that outlives those who count by it, so that what they have counted never shrinks.
struct Kept {
    labels: Labels,
    source: Arc<dyn Source>,
    /// The same once more, as what it is.
    typed: Arc<dyn Any + Send + Sync>,
}

impl Kept {
    fn is_used(&self) -> bool {
        Arc::strong_count(&self.typed) > 2
    }
}

pub(crate) type Labels = Vec<(&'static str, String)>;

impl Registry {
    /// Asks `source` too from now on, as long as somebody else keeps it.
    pub fn add<S: Source + 'static>(&self, source: &Arc<S>) {
        let source: Weak<dyn Source> = Arc::<S>::downgrade(source);
        let added = &mut self.lock().added;
        added.retain(|other| {
            other.strong_count() > 0 && !ptr::addr_eq(other.as_ptr(), source.as_ptr())
        });
        added.push(source);
    }

    /// Returns the source that counts under `labels`: the same to all who ask for it, for as long
    /// as the registry lives. Of those that nobody uses the last few stay, for many may come and go.
    pub(crate) fn keep<S: Source + 'static>(
        &self,
        labels: &Labels,
        new: impl FnOnce() -> S,
    ) -> Arc<S> {
        let kept = &mut self.lock().kept;
        let known = kept.iter().position(|kept| kept.labels == *labels && kept.typed.is::<S>());
        let known = known.map(|at| kept.remove(at));
        let typed = known.and_then(|known| known.typed.downcast().ok());
        let typed = typed.unwrap_or_else(|| Arc::new(new()));
        let mut unused = kept.iter().filter(|kept| !kept.is_used()).count();
        kept.retain(|kept| {
            let stays = kept.is_used() || unused <= UNUSED_MAX;
            unused -= usize::from(!stays);
            stays
        });
        let (labels, source) = (labels.clone(), Arc::<S>::clone(&typed));
        kept.push(Kept { labels, source, typed: Arc::<S>::clone(&typed) });
        typed
    }

    /// Returns the values at this moment, one for each series.
    pub fn collect(&self) -> Vec<Sample> {
        let sources: Vec<_> = {
            let Sources { added, kept } = &*self.lock();
            let kept = kept.iter().map(|kept| Arc::clone(&kept.source));
            added.iter().filter_map(Weak::upgrade).chain(kept).collect()
        };
        let mut samples = Vec::new();
        sources.iter().for_each(|source| source.collect(&mut samples));
        merged(samples)
    }

    /// Returns the values at this moment in the Prometheus text format, version 0.0.4.
    pub fn render(&self) -> String {
        let mut samples = self.collect();
        // Stable: what one source said stays in its order.
        samples.sort_by_key(|sample| sample.metric.name);
        let mut text = String::new();
        let mut last = "";
        for sample in &samples {
            let Metric { name, kind, help } = sample.metric;
            if name != last {
                let kind = match kind {
                    Kind::Counter => "counter",
                    Kind::Gauge => "gauge",
                    Kind::Histogram => "histogram",
                };
                // Writing to a string cannot fail.
                let _ = writeln!(text, "# HELP {name} {help}\n# TYPE {name} {kind}");
                last = name;
            }
            let _ = write!(text, "{name}{}", sample.suffix);
            for (at, (key, value)) in sample.labels.iter().enumerate() {
                let open = if at == 0 { '{' } else { ',' };
                let _ = write!(text, "{open}{key}=\"{}\"", escaped(value));
            }
            let close = if sample.labels.is_empty() { "" } else { "}" };
            let _ = writeln!(text, "{close} {}", sample.value);
        }
        text
    }

    fn lock(&self) -> MutexGuard<'_, Sources> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl fmt::Debug for Registry {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Sources { added, kept } = &*self.lock();
        f.debug_struct("Registry").field("sources", &(added.len() + kept.len())).finish()
    }
}

/// Adds up the samples of one series, where the first of them stood.
fn merged(samples: Vec<Sample>) -> Vec<Sample> {
    let mut places = HashMap::new();
    let mut merged: Vec<Sample> = Vec::with_capacity(samples.len());
    for sample in samples {
        // The order of labels says nothing.
        let mut labels = sample.labels.clone();
        labels.sort_unstable();
        match places.entry((sample.metric.name, sample.suffix, labels)) {
            Entry::Occupied(place) => {
                let first: &mut Sample = &mut merged[*place.get()];
                first.value += sample.value;
            }
            Entry::Vacant(place) => {
                place.insert(merged.len());
                merged.push(sample);
            }
        }
    }
    merged
}

fn escaped(value: &str) -> String {
    value.replace('\\', "\\\\").replace('"', "\\\"").replace('\n', "\\n")
}

/// Instances may come and go under new ids; each of these costs about a hundred lines of the page.
const UNUSED_MAX: usize = 64;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::metrics::{CLIENT_INSTANCES, CLIENT_RETRIES, Counter, plain};

    #[derive(Default)]
    struct Counts {
        labels: Labels,
        counter: Counter,
    }

    impl Source for Counts {
        fn collect(&self, samples: &mut Vec<Sample>) {
            plain(CLIENT_RETRIES, &self.labels, self.counter.read(), samples);
            plain(CLIENT_INSTANCES, &self.labels, 1, samples);
        }
    }

    fn counts(labels: &[(&'static str, &str)], count: u64) -> Arc<Counts> {
        let labels = labels.iter().map(|(key, value)| (*key, (*value).to_owned())).collect();
        let counts = Counts { labels, counter: Counter::default() };
        counts.counter.add(count);
        Arc::new(counts)
    }

    #[test]
    fn what_several_say_of_one_series_is_added_up_and_nobody_is_asked_twice() {
        let registry = Registry::default();
        let both = [
            counts(&[("a", "1"), ("b", "2")], 5),
            counts(&[("b", "2"), ("a", "1")], 7),
            counts(&[("a", "1")], 1),
        ];
        both.iter().chain(&both).for_each(|source| registry.add(source));
        let samples = registry.collect();
        let values: Vec<_> = samples.iter().map(|sample| sample.value).collect();
        assert_eq!(values, [12.0, 2.0, 1.0, 1.0]);
        assert_eq!(registry.render().matches("dynamo_client_retries_total{").count(), 2);
    }

    #[test]
    fn what_is_kept_outlives_its_users_and_of_many_unused_the_last_stay() {
        let (registry, kept) = (Registry::default(), |registry: &Registry, id: usize| {
            let labels = vec![("id", id.to_string())];
            registry.keep(&labels, || Counts { labels: labels.clone(), ..Counts::default() })
        });
        let used = kept(&registry, 0);
        used.counter.add(1);
        kept(&registry, 1).counter.add(1);
        kept(&registry, 1).counter.add(1);
        assert_eq!(kept(&registry, 1).counter.read(), 2, "it was kept");
        (2..2 + 2 * UNUSED_MAX).for_each(|id| drop(kept(&registry, id)));
        assert!(registry.collect().len() <= 2 * (UNUSED_MAX + 2), "{registry:?}");
        assert_eq!(kept(&registry, 1).counter.read(), 0, "the oldest has made room");
        assert!(Arc::ptr_eq(&used, &kept(&registry, 0)), "who is used stays");
    }
}
