#[cfg(not(dynamo_loom))]
mod learning;
#[cfg(not(dynamo_loom))]
mod ledger;
#[cfg(dynamo_loom)]
mod models;
