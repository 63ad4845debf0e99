//! What becomes of a request that something bad happens to, by phase and by fault; the other side of
//! each request is a process of its own.
#![expect(clippy::unwrap_used, reason = "helpers of tests fail the test")]

mod cell;
mod expected;
mod network;
mod proxy;

use std::io::Write as _;

use futures::stream::{self, StreamExt};

use expected::{Expected, TABLE};
use network::Network;

/// How far a request is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Phase {
    /// The connection is being made.
    Connect,
    /// The engine has been asked and has not answered yet.
    BeforeAccept,
    /// It waits for its turn at the server.
    Queued,
    /// The stream has begun, and has no item yet.
    BeforeFirstItem,
    /// An item has been read.
    MidStream,
    /// So it has, and the server takes no more requests.
    Draining,
}

/// What happens to it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Fault {
    /// The caller drops the future, or the stream.
    ClientDrops,
    /// The caller's process gets a SIGKILL.
    ClientKilled,
    /// The server's process gets a SIGKILL.
    ServerKilled,
    /// The server's process gets a SIGSTOP, and a SIGCONT when the request has ended.
    ServerStopped,
    /// The connection is reset from both sides.
    Reset,
    /// No packet gets through any more, and nobody is told.
    Blackhole,
    /// Discovery does not list the server any more.
    DiscoveryLoss,
    /// The caller does not read what the server sends.
    SlowReader,
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_fault_in_every_phase_ends_as_it_should_in_time_and_leaves_nothing_behind() {
    let network = Network::start();
    if let Err(why) = &network {
        // Past the capture of passing tests' output.
        let skipped = format!(
            "SKIPPED: faults with packets that get lost need root and `ip` ({why}); \
             `apt-get install iproute2`, and run the tests as root\n"
        );
        std::io::stderr().write_all(skipped.as_bytes()).unwrap();
    }
    let network = network.ok();
    let before = (open_files(), tasks());
    let cells =
        TABLE.iter().filter(|(_, _, expected, _)| !matches!(expected, Expected::NoSense(_)));
    let cells = cells.filter(|(_, fault, ..)| *fault != Fault::Blackhole || network.is_some());
    let network = network.as_ref();
    let ends = stream::iter(cells).map(|(phase, fault, expected, within)| async move {
        let outcome = cell::run((*phase, *fault), *expected, *within, network).await;
        outcome.err().map(|error| format!("{phase:?} × {fault:?}: {error:#}"))
    });
    // Most of the time they wait.
    let failed: Vec<_> = ends.buffer_unordered(8).filter_map(async |end| end).collect().await;
    assert!(failed.is_empty(), "{} cells failed:\n{}", failed.len(), failed.join("\n"));
    let settles = async {
        while (open_files(), tasks()) != before {
            tokio::task::yield_now().await;
        }
    };
    let settled = tokio::time::timeout(std::time::Duration::from_secs(20), settles).await;
    assert!(settled.is_ok(), "{before:?} files and tasks became {:?}", (open_files(), tasks()));
}

#[test]
fn the_table_has_every_cell_once() {
    for (at, (phase, fault, ..)) in TABLE.iter().enumerate() {
        assert!(
            TABLE[..at].iter().all(|(p, f, ..)| (p, f) != (phase, fault)),
            "{phase:?} {fault:?}"
        );
    }
    let senseless = TABLE.iter().filter_map(|(_, _, expected, _)| match expected {
        Expected::NoSense(why) => Some(why),
        _ => None,
    });
    assert!(senseless.clone().all(|why| !why.is_empty()) && senseless.count() == 4);
}

fn open_files() -> usize {
    dynamo_tests::process::open_files().unwrap()
}

fn tasks() -> usize {
    tokio::runtime::Handle::current().metrics().num_alive_tasks()
}
