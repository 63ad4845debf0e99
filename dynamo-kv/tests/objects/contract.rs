use std::cell::RefCell;

use dynamo_kv::tier::conformance;
use dynamo_kv::tier::object::ObjectTier;

use crate::faulty::{Fault, Faulty};
use crate::support::{Shelf, config};

/// Has every tier in a store of its own, in which others run while a request is under way.
async fn conforms(shelf: fn() -> Shelf) {
    let shelves = RefCell::new(Vec::new());
    conformance::run(async || {
        let shelf = shelf();
        let store = Faulty::new(&shelf.store, |_, _| Fault::Yield);
        shelves.borrow_mut().push(shelf);
        ObjectTier::new(store, config(conformance::layout().block_bytes())).unwrap()
    })
    .await;
}

#[tokio::test]
async fn a_tier_of_objects_in_memory_conforms() {
    conforms(Shelf::memory).await;
}

#[tokio::test]
async fn a_tier_of_objects_in_a_directory_conforms() {
    conforms(Shelf::directory).await;
}
