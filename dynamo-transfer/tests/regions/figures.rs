//! How fast it is: `cargo test --release -p dynamo-transfer --test regions -- --ignored figures --nocapture`.

use std::io::Write as _;
use std::time::Duration;

use dynamo_transfer::file::{FileOptions, FileRange, FileRegion};
use dynamo_transfer::{HostBuffer, MemoryKind, Rights, TransferOptions};
use tokio::time::Instant;

use crate::lab::{Lab, Link, Region, load};

const LEN: usize = 256 << 20;
const BLOCK_LEN: usize = 256 << 10;
const BLOCK: u64 = BLOCK_LEN as u64;
const ROUNDS: usize = 5;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "prints figures, alone on the machine"]
async fn figures() {
    let lab = Lab::new("figures", None);
    let host = || HostBuffer::new(LEN);
    let bytes = vec![5; LEN];
    for link in [Link::SameFabric, Link::Tcp] {
        let (owner, initiator) = link.agents().await;
        for (here, there) in [
            (MemoryKind::Host, MemoryKind::File),
            (MemoryKind::File, MemoryKind::Host),
            (MemoryKind::Pinned, MemoryKind::Device(0)),
            (MemoryKind::Host, MemoryKind::Device(0)),
            (MemoryKind::Device(0), MemoryKind::File),
            (MemoryKind::Host, MemoryKind::Host),
        ] {
            let local = lab.register(&initiator, here, &bytes, Rights::OwnerWrites).await;
            let remote = lab.register(&owner, there, &bytes, Rights::PeersWrite).await;
            let peer = load(&owner, &initiator, &remote);
            let blocks = (0..LEN as u64).step_by(2 * BLOCK_LEN);
            // Every other block, so that no two are neighbours.
            let blocks: Vec<_> = blocks.map(|at| (at, BLOCK)).collect();
            let (mut reads, mut writes) = (Vec::new(), Vec::new());
            for _ in 0..ROUNDS {
                for (times, is_read) in [(&mut reads, true), (&mut writes, false)] {
                    let at_peer = peer.descriptor(blocks.iter().copied()).unwrap();
                    let at_home = local.descriptor(&blocks).unwrap();
                    let (start, options) = (Instant::now(), TransferOptions::default());
                    let transfer = match is_read {
                        true => initiator.read(at_home, at_peer, options),
                        false => initiator.write(at_home, at_peer, options),
                    };
                    transfer.await.unwrap();
                    times.push(start.elapsed());
                }
            }
            let (reads, writes) = (rate(reads), rate(writes));
            say(&format!(
                "{link:?} {here:?} and {there:?}: read {reads:.2}, write {writes:.2} GB/s"
            ));
            if let (Region::File(..), Link::SameFabric) = (&remote, link) {
                say(&format!("the store itself: {}", store_alone(&lab, &remote, host()).await));
            }
            drop((local, remote));
        }
        owner.shutdown().await;
        initiator.shutdown().await;
    }
    lab.end().await;
}

async fn store_alone(lab: &Lab, region: &Region, mut buffer: HostBuffer) -> String {
    let Region::File(_, path) = region else { unreachable!("it is a file") };
    let file = FileRegion::open(path, LEN as u64, FileOptions::default()).unwrap();
    let ranges = (0..LEN).step_by(2 * BLOCK_LEN);
    let range = |at| FileRange { offset: at as u64, at, len: BLOCK_LEN };
    let ranges: Vec<_> = ranges.map(range).collect();
    let (mut reads, mut writes) = (Vec::new(), Vec::new());
    for _ in 0..ROUNDS {
        let start = Instant::now();
        let (done, back) = lab.store.read(&file, &ranges, buffer).await;
        done.unwrap();
        reads.push(start.elapsed());
        let start = Instant::now();
        let (done, back) = lab.store.write(&file, &ranges, back.unwrap()).await;
        done.unwrap();
        writes.push(start.elapsed());
        buffer = back.unwrap();
    }
    format!("read {:.2}, write {:.2} GB/s", rate(reads), rate(writes))
}

/// The median in GB/s.
fn rate(mut times: Vec<Duration>) -> f64 {
    times.sort_unstable();
    LEN as f64 / 2.0 / times[times.len() / 2].as_secs_f64() / 1e9
}

fn say(text: &str) {
    std::io::stderr().write_all(format!("{text}\n").as_bytes()).unwrap();
}
