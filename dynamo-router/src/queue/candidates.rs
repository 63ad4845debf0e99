use std::sync::Arc;

use dynamo_core::{Client, Instance, Message};
use futures::StreamExt;
use futures::stream::{self, BoxStream};

/// Who there is, and when that changes.
pub(super) struct Candidates {
    list: Box<dyn Fn() -> Arc<[Instance]> + Send + Sync>,
    changes: Box<dyn Fn() -> BoxStream<'static, ()> + Send + Sync>,
}

impl Candidates {
    /// Nobody says when there are others.
    pub(super) fn told_by(list: impl Fn() -> Arc<[Instance]> + Send + Sync + 'static) -> Self {
        Self { list: Box::new(list), changes: Box::new(|| stream::pending().boxed()) }
    }

    pub(super) fn of<Req: Message, Resp: Message>(client: &Client<Req, Resp>) -> Self {
        let (listing, client) = (client.clone(), client.clone());
        let changes = move || client.watch().map(drop).chain(stream::pending()).boxed();
        Self { list: Box::new(move || listing.candidates()), changes: Box::new(changes) }
    }

    pub(super) fn list(&self) -> Arc<[Instance]> {
        (self.list)()
    }

    /// Returns an item at once and whenever there are others; it never ends.
    pub(super) fn changes(&self) -> BoxStream<'static, ()> {
        (self.changes)()
    }
}
