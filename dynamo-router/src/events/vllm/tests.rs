//! Tests of the rooms of vLLM's events, and what they share.

#[path = "../../../../dynamo-core/tests/support/corpus.rs"]
mod corpus;
mod decode;
mod engine;
mod live;
mod losses;
mod publisher;
mod translate;
mod wire;
