use std::sync::{Arc, Mutex, PoisonError, Weak};

use super::inflight::Inflight;
use crate::engine::{Measures, Names};
use crate::metrics::{self, Registry, Sample, Source, plain};
use crate::name::EndpointPath;
use crate::protocol::InstanceId;

/// What an instance counts at one endpoint, over all its incarnations in this process: one may
/// drain while the next serves.
#[derive(Debug)]
pub(super) struct ServerTotals {
    pub(super) endpoint: EndpointPath,
    pub(super) instance: InstanceId,
    pub(super) measures: Measures,
    /// Of the incarnations that there are.
    inflights: Mutex<Vec<Weak<Inflight>>>,
}

impl ServerTotals {
    /// Returns the totals of `instance` at `endpoint` in `registry`.
    pub(super) fn of(
        registry: &Registry,
        endpoint: &EndpointPath,
        instance: InstanceId,
    ) -> Arc<Self> {
        let labels = vec![("endpoint", endpoint.to_string()), ("instance", instance.to_string())];
        registry.keep(&labels, || Self {
            endpoint: endpoint.clone(),
            instance,
            measures: Measures::default(),
            inflights: Mutex::default(),
        })
    }

    /// Tells of the requests in `inflight` too, as long as it lives.
    pub(super) fn add(&self, inflight: &Arc<Inflight>) {
        let mut inflights = self.inflights.lock().unwrap_or_else(PoisonError::into_inner);
        inflights.retain(|inflight| inflight.strong_count() > 0);
        inflights.push(Arc::downgrade(inflight));
    }
}

impl Source for ServerTotals {
    fn collect(&self, samples: &mut Vec<Sample>) {
        let labels =
            [("endpoint", self.endpoint.to_string()), ("instance", self.instance.to_string())];
        self.measures.collect(&NAMES, &labels, samples);
        let inflights: Vec<_> = {
            let inflights = self.inflights.lock().unwrap_or_else(PoisonError::into_inner);
            inflights.iter().filter_map(Weak::upgrade).collect()
        };
        if inflights.is_empty() {
            // Nobody serves: that is no idle instance.
            return;
        }
        let sum = |of: fn(&Inflight) -> usize| {
            inflights.iter().map(|inflight| of(inflight) as u64).sum::<u64>()
        };
        let running = sum(|inflight| inflight.admission().running());
        let waiting = sum(|inflight| inflight.admission().waiting());
        plain(metrics::SERVER_RUNNING, &labels, running, samples);
        plain(metrics::SERVER_WAITING, &labels, waiting, samples);
    }
}

const NAMES: Names = Names {
    requests: metrics::SERVER_REQUESTS,
    items: metrics::SERVER_ITEMS,
    first_item: metrics::SERVER_FIRST_ITEM,
    item_interval: metrics::SERVER_ITEM_INTERVAL,
    request: metrics::SERVER_REQUEST,
};
