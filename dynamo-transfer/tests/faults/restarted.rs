//! Owners that end and start again under the same name and at the same address.

use std::net::{SocketAddr, TcpListener};

use dynamo_transfer::{BackendKind, ErrorKind};

use crate::agents::{PATIENCE, REGION_BYTES, agent, backends, block_on, close, read, target};
use crate::peer::OWNED;
use crate::process::{Process, load};

#[test]
fn an_owner_that_starts_again_serves_new_metadata_and_refuses_what_it_gave_out_before() {
    block_on(async {
        for backend in backends().await {
            restart(backend).await;
        }
    });
}

async fn restart(backend: BackendKind) {
    let address = free_address();
    let agent = agent("reader", backend).await;
    let region = target(&agent);
    let mut before = Process::start();
    let old = load(&agent, &before.own_at(backend, address));
    read(&agent, &old, &region, PATIENCE).await.unwrap();
    before.kill();
    for _ in 0..2 {
        let mut after = Process::start();
        let new = load(&agent, &after.own_at(backend, address));
        assert_eq!((new.name(), new.name() == old.name()), ("owner", true));
        assert_ne!(new.incarnation(), old.incarnation());
        for _ in 0..2 {
            let refused = read(&agent, &old, &region, PATIENCE).await.unwrap_err();
            assert_eq!(refused.kind(), ErrorKind::StaleRegion, "{backend}: {refused}");
            let report = read(&agent, &new, &region, PATIENCE).await.unwrap();
            assert_eq!((report.bytes, report.backend), (REGION_BYTES as u64, backend));
        }
        after.kill();
    }
    assert!(close(region).await.iter().all(|byte| *byte == OWNED));
    agent.shutdown().await;
}

/// Returns an address at which nobody listens.
fn free_address() -> SocketAddr {
    TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap()
}
