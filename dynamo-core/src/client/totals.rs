use std::collections::BTreeSet;
use std::sync::{Arc, Mutex, PoisonError, Weak};

use super::fleet::Fleet;
use crate::discovery::Instance;
use crate::engine::{Measures, Names};
use crate::metrics::{self, Counter, Registry, Sample, Source, plain};
use crate::name::EndpointPath;

/// What the clients of one endpoint count, all together: stays when they go, and grows on when
/// others come.
#[derive(Debug)]
pub(super) struct ClientTotals {
    endpoint: EndpointPath,
    pub(super) measures: Measures,
    pub(super) retries: Counter,
    pub(super) ejections: Arc<Counter>,
    /// Of the clients that there are.
    fleets: Mutex<Vec<Weak<Fleet>>>,
}

impl ClientTotals {
    /// Returns the totals of `endpoint` in `registry`.
    pub(super) fn of(registry: &Registry, endpoint: &EndpointPath) -> Arc<Self> {
        let labels = vec![("endpoint", endpoint.to_string())];
        registry.keep(&labels, || Self {
            endpoint: endpoint.clone(),
            measures: Measures::default(),
            retries: Counter::default(),
            ejections: Arc::default(),
            fleets: Mutex::default(),
        })
    }

    /// Tells of the instances of `fleet` too, as long as it lives.
    pub(super) fn add(&self, fleet: &Arc<Fleet>) {
        let mut fleets = self.fleets.lock().unwrap_or_else(PoisonError::into_inner);
        fleets.retain(|fleet| fleet.strong_count() > 0);
        fleets.push(Arc::downgrade(fleet));
    }
}

impl Source for ClientTotals {
    fn collect(&self, samples: &mut Vec<Sample>) {
        let labels = [("endpoint", self.endpoint.to_string())];
        self.measures.collect(&NAMES, &labels, samples);
        plain(metrics::CLIENT_RETRIES, &labels, self.retries.read(), samples);
        plain(metrics::CLIENT_EJECTIONS, &labels, self.ejections.read(), samples);
        let fleets: Vec<_> = {
            let fleets = self.fleets.lock().unwrap_or_else(PoisonError::into_inner);
            fleets.iter().filter_map(Weak::upgrade).collect()
        };
        if fleets.is_empty() {
            // Nobody looks: that is no fleet of none.
            return;
        }
        let count = |of: fn(&Fleet) -> Arc<[Instance]>| {
            let instances = fleets.iter().map(|fleet| of(fleet));
            let ids: BTreeSet<_> = instances
                .flat_map(|all| all.iter().map(|its| its.id).collect::<Vec<_>>())
                .collect();
            ids.len() as u64
        };
        plain(metrics::CLIENT_INSTANCES, &labels, count(Fleet::instances), samples);
        plain(metrics::CLIENT_CANDIDATES, &labels, count(Fleet::candidates), samples);
    }
}

const NAMES: Names = Names {
    requests: metrics::CLIENT_REQUESTS,
    items: metrics::CLIENT_ITEMS,
    first_item: metrics::CLIENT_FIRST_ITEM,
    item_interval: metrics::CLIENT_ITEM_INTERVAL,
    request: metrics::CLIENT_REQUEST,
};
