//! Peers that are stopped in the middle of transfers, and go on later.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use dynamo_transfer::{Agent, BackendKind, ErrorKind, HostBuffer};
use futures::future::join_all;
use tokio::task::JoinSet;

use crate::agents::{
    PATIENCE, REGION_BYTES, SLACK, agent, backends, begun, block_on, close, move_all, read, say,
    target,
};
use crate::eventually::eventually;
use crate::peer::{OWNED, WRITTEN};
use crate::process::{Process, load};

const DEADLINE: Duration = Duration::from_millis(500);

/// What nobody but this process writes.
const OWN: u8 = 9;

#[test]
fn a_frozen_owner_is_given_up_at_the_deadline_and_touches_no_closed_memory_when_it_thaws() {
    block_on(async {
        // Most of the time they wait; a task each, for one that looks at its memory keeps the others.
        let frozen: JoinSet<()> = backends().await.into_iter().map(freeze_owner).collect();
        frozen.join_all().await;
    });
}

async fn freeze_owner(backend: BackendKind) {
    let agent = agent("reader", backend).await;
    let (owner, metadata) = Process::owner(backend);
    let (peer, region, spare) = (load(&agent, &metadata), target(&agent), target(&agent));
    read(&agent, &peer, &region, PATIENCE).await.unwrap();
    // One that is in the middle, and one that begins when nobody answers.
    let posted = Instant::now();
    let caught = read(&agent, &peer, &spare, DEADLINE);
    begun(&caught).await;
    owner.freeze();
    let late = read(&agent, &peer, &region, DEADLINE);
    let written = move_all(&agent, &peer, &region, DEADLINE, true);
    for (transfer, may_succeed) in [(caught, true), (late, false), (written, false)] {
        let outcome = transfer.await.map(|report| report.bytes);
        assert!(posted.elapsed() < DEADLINE + 2 * SLACK, "{backend}: {:?}", posted.elapsed());
        match outcome.map_err(|error| error.kind()) {
            // Over shared memory the owner takes no part.
            Ok(_) => assert!(may_succeed || backend == BackendKind::Shm, "{backend}"),
            Err(kind) => assert_eq!(kind, ErrorKind::DeadlineExceeded, "{backend}"),
        }
    }
    let mut memory = [close(region).await, close(spare).await];
    memory.iter_mut().for_each(|memory| memory.fill(OWN));
    owner.thaw();
    let region = target(&agent);
    let report = read(&agent, &peer, &region, PATIENCE).await.unwrap();
    assert_eq!((report.bytes, report.backend), (REGION_BYTES as u64, backend));
    // Whatever the owner still had to send has arrived before that, in order.
    assert!(memory.iter().all(|memory| is_all(memory, &[OWN])), "{backend}");
    assert!(is_all(&close(region).await, &[OWNED, 0]), "{backend}");
    agent.shutdown().await;
}

/// Tells whether bytes are all of those `allowed`; a page of one at a time, where it can.
fn is_all(bytes: &[u8], allowed: &[u8]) -> bool {
    bytes.chunks(4096).all(|page| {
        allowed.iter().any(|byte| page == &[*byte; 4096][..page.len()])
            || page.iter().all(|byte| allowed.contains(byte))
    })
}

/// Memory that says when it is freed.
struct Watched {
    memory: HostBuffer,
    is_freed: Arc<AtomicBool>,
}

impl AsMut<[u8]> for Watched {
    fn as_mut(&mut self) -> &mut [u8] {
        &mut self.memory
    }
}

impl Drop for Watched {
    fn drop(&mut self) {
        self.is_freed.store(true, Ordering::SeqCst);
    }
}

#[test]
fn an_initiator_frozen_in_the_middle_keeps_its_memory_at_most_and_others_are_served() {
    freeze_initiators(PATIENCE / 10);
}

#[test]
#[ignore = "a minute; `cargo test -p dynamo-transfer --features ucx --test faults -- --ignored --nocapture for_long`"]
fn an_initiator_frozen_for_long_is_given_up_unless_it_touches_memory_by_itself() {
    freeze_initiators(LONG);
}

/// Longer than an owner waits for the data of an operation.
const LONG: Duration = Duration::from_secs(60);

fn freeze_initiators(patience: Duration) {
    block_on(async {
        let rounds = backends().await.into_iter().map(|backend| async move {
            let owner = agent("owner", backend).await;
            freeze_initiator(&owner, backend, patience).await;
            owner.shutdown().await;
        });
        join_all(rounds).await;
    });
}

/// Stops a writer in the middle, and closes the memory it writes.
async fn freeze_initiator(owner: &Agent, backend: BackendKind, patience: Duration) {
    let is_freed = Arc::<AtomicBool>::default();
    let watched =
        Watched { memory: HostBuffer::new(REGION_BYTES), is_freed: Arc::clone(&is_freed) };
    let region = owner.register_peer_writable(vec![watched]).unwrap();
    let metadata = owner.metadata([region.grant()]).unwrap();
    let mut writer = Process::start();
    writer.write(backend, &metadata);
    writer.freeze();

    // A peer that touches memory by itself cannot be kept from it: the owner waits for it, as long
    // as that takes. From peers that send what they write it has the memory back.
    let frozen = Instant::now();
    let closed = tokio::time::timeout(patience, region.close()).await;
    let waited = frozen.elapsed();
    say(&format!("{backend}: closed while a writer is frozen: {}, {waited:.1?}", closed.is_ok()));
    serves(owner, backend).await;
    match closed {
        Ok(mut memory) => {
            memory[0].memory.fill(OWN);
            writer.thaw();
            ended(&mut writer, backend);
            assert!(memory[0].memory.iter().all(|byte| *byte == OWN), "{backend}");
        }
        Err(_) => {
            let may_wait = backend != BackendKind::Tcp || patience < LONG;
            assert!(may_wait, "{backend}: the owner writes by itself");
            assert!(!is_freed.load(Ordering::SeqCst), "{backend}: a peer may still write it");
            writer.thaw();
            ended(&mut writer, backend);
            let freed = || is_freed.load(Ordering::SeqCst);
            eventually("nobody touches it any more", freed).await;
        }
    }
    serves(owner, backend).await;
}

/// Sees that the writer is told, unless it was cut off.
fn ended(writer: &mut Process, backend: BackendKind) {
    let kind = writer.ask("ended");
    assert!(["StaleRegion", "Disconnected"].contains(&&kind[..]), "{backend}: {kind}");
}

/// Sees that the owner serves somebody else.
async fn serves(owner: &Agent, backend: BackendKind) {
    let region = owner.register_peer_writable(vec![HostBuffer::new(REGION_BYTES)]).unwrap();
    let metadata = owner.metadata([region.grant()]).unwrap();
    let other = agent("other", backend).await;
    let mut source = HostBuffer::new(REGION_BYTES);
    source.fill(WRITTEN);
    let source = other.register(vec![source]).unwrap();
    let written = move_all(&other, &load(&other, &metadata), &source, PATIENCE, true);
    assert_eq!(written.await.unwrap().backend, backend);
    other.shutdown().await;
    assert!(close(region).await.iter().all(|byte| *byte == WRITTEN));
}
