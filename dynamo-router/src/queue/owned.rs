use dynamo_core::Priority;
use dynamo_core::protocol::{InstanceId, WorkerId};

use crate::choose::SessionKey;
use crate::router::{Constraints, Preference};

/// What [`Constraints`] borrow, kept for as long as a request waits.
pub(super) struct OwnedConstraints {
    exclude: Vec<InstanceId>,
    only: Option<Vec<InstanceId>>,
    pinned: Option<WorkerId>,
    avoid: Vec<WorkerId>,
    session: Option<SessionKey>,
    priority: Priority,
    required: Vec<(String, String)>,
    /// Label, value, and what it is worth in seconds.
    preferred: Vec<(String, String, f64)>,
}

impl OwnedConstraints {
    pub(super) fn new(constraints: &Constraints<'_>) -> Self {
        // Each by its name, so that none is forgotten.
        let &Constraints { exclude, only, pinned, avoid, session, priority, required, preferred } =
            constraints;
        let pair = |&(label, value): &(&str, &str)| (label.to_owned(), value.to_owned());
        let preference = |&Preference { label, value, seconds }: &Preference<'_>| {
            (label.to_owned(), value.to_owned(), seconds)
        };
        Self {
            exclude: exclude.to_vec(),
            only: only.map(<[_]>::to_vec),
            pinned,
            avoid: avoid.to_vec(),
            session,
            priority,
            required: required.iter().map(pair).collect(),
            preferred: preferred.iter().map(preference).collect(),
        }
    }

    /// Lends them to `ask`.
    pub(super) fn lend<R>(&self, ask: impl FnOnce(&Constraints<'_>) -> R) -> R {
        let required: Vec<_> =
            self.required.iter().map(|(label, value)| (label.as_str(), value.as_str())).collect();
        let preferred: Vec<_> = self
            .preferred
            .iter()
            .map(|(label, value, seconds)| Preference { label, value, seconds: *seconds })
            .collect();
        ask(&Constraints {
            exclude: &self.exclude,
            only: self.only.as_deref(),
            pinned: self.pinned,
            avoid: &self.avoid,
            session: self.session,
            priority: self.priority,
            required: &required,
            preferred: &preferred,
        })
    }
}
