use std::time::Duration;

use etcd_client::{Client, ConnectOptions};

use super::{ANSWER_MAX, answered};
use crate::error::{Error, Result};

/// How etcd is used.
#[derive(Debug, Clone, serde::Deserialize)]
#[serde(default = "EtcdConfig::nowhere", deny_unknown_fields)]
#[non_exhaustive]
pub struct EtcdConfig {
    /// Where etcd answers, such as `http://127.0.0.1:2379`.
    pub endpoints: Vec<String>,
    /// What all keys start with.
    pub root: String,
    /// How long keys outlive the last sign of life of their process, in whole seconds; listeners
    /// keep an instance that has not said that it leaves for as long again, and two seconds.
    #[serde(deserialize_with = "crate::time::duration")]
    pub ttl: Duration,
    /// How often, at the most, etcd is asked for everything although nothing seems to be wrong: by
    /// listeners who is there, by a process that serves whether its keys still are.
    #[serde(deserialize_with = "crate::time::duration")]
    pub reconcile: Duration,
    /// Name and password, if etcd asks for them.
    pub user: Option<(String, String)>,
}

impl EtcdConfig {
    /// Asks etcd at `endpoints`.
    pub fn new<E: Into<String>>(endpoints: impl IntoIterator<Item = E>) -> Self {
        Self {
            endpoints: endpoints.into_iter().map(Into::into).collect(),
            root: "/dynamo".to_owned(),
            // A few keep-alives may be lost; a dead instance is noticed by its connection first.
            ttl: Duration::from_secs(5),
            // One read per endpoint, for what should not happen.
            reconcile: Duration::from_secs(60),
            user: None,
        }
    }

    /// What a config that is read fills up from.
    fn nowhere() -> Self {
        Self::new([""; 0])
    }

    /// Starts all keys with `root`.
    #[must_use]
    pub fn with_root(mut self, root: impl Into<String>) -> Self {
        self.root = root.into();
        self
    }

    /// Lets instances outlive their process by `ttl`.
    #[must_use]
    pub fn with_ttl(mut self, ttl: Duration) -> Self {
        self.ttl = ttl;
        self
    }

    /// Asks for everything every `reconcile`.
    #[must_use]
    pub fn with_reconcile(mut self, reconcile: Duration) -> Self {
        self.reconcile = reconcile;
        self
    }

    /// Identifies by name and password.
    #[must_use]
    pub fn with_user(mut self, name: impl Into<String>, password: impl Into<String>) -> Self {
        self.user = Some((name.into(), password.into()));
        self
    }

    pub(super) fn validate(&self) -> Result<()> {
        if self.endpoints.is_empty() {
            return Err(Error::invalid("no endpoint of etcd is given"));
        }
        if !(2..=3600).contains(&self.ttl.as_secs()) {
            return Err(Error::invalid(format!("etcd TTL of {:?}", self.ttl)));
        }
        if !RECONCILE.contains(&self.reconcile) {
            return Err(Error::invalid(format!("etcd reconcile of {:?}", self.reconcile)));
        }
        if !self.root.starts_with('/') || self.root.ends_with('/') {
            let root = &self.root;
            return Err(Error::invalid(format!("etcd root {root:?} is not of the form /name")));
        }
        Ok(())
    }

    /// Connects, within a bound.
    pub(super) async fn connect(&self) -> Result<Client> {
        let mut options = ConnectOptions::new()
            .with_connect_timeout(ANSWER_MAX)
            .with_keep_alive(ANSWER_MAX, ANSWER_MAX);
        if let Some((name, password)) = &self.user {
            options = options.with_user(name, password);
        }
        answered(Box::pin(Client::connect(&self.endpoints, Some(options)))).await
    }
}

/// Less would be load on etcd, more no help.
const RECONCILE: std::ops::RangeInclusive<Duration> =
    Duration::from_secs(1)..=Duration::from_secs(3600);
