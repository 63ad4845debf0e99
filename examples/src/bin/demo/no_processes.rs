//! Stands in for `processes` in a build without that feature: says how to get it.
#![expect(clippy::unused_async, reason = "these are what the real ones are")]

use std::sync::Arc;

use anyhow::{Result, bail};
use dynamo_core::Runtime;
use dynamo_examples::graph::GraphConfig;
use dynamo_examples::model::Model;

use crate::args::{Args, Worker};

/// There are none.
pub(crate) enum Processes {}

impl Processes {
    pub(crate) async fn start() -> Result<(Self, Runtime)> {
        missing()
    }

    pub(crate) fn worker(&mut self, _: &str, args: &Args) -> Result<()> {
        tracing::debug!(?args, caches = ?args.caches(), "cannot work");
        match *self {}
    }

    pub(crate) async fn end(self) -> Result<()> {
        match self {}
    }
}

pub(crate) async fn work(
    worker: &Worker,
    _: &Arc<Model>,
    _: Option<&str>,
    _: &GraphConfig,
) -> Result<()> {
    let Worker { name, etcd, nats } = worker;
    tracing::debug!(name, etcd, nats, "cannot work");
    missing()
}

fn missing<T>() -> Result<T> {
    bail!("this demo is built without the feature `processes`: use `cargo xtask demo --processes`")
}
