//! The other process: it does what each line of its standard input says, and ends with it.

use dynamo_transfer::{Agent, BackendKind, ErrorKind, HostBuffer, RegisteredRegion};
use tokio::task::JoinSet;

use crate::agents::{self, PATIENCE, REGION_BYTES, begun, block_on, config, config_at, move_all};
use crate::child::{answer, from_hex, to_hex};
use crate::process::load;

/// What only the tests' own processes are told, as the name of a test to skip.
pub(crate) const AS_PEER: &str = "as_peer_of_a_test";

/// What owners fill their memory with.
pub(crate) const OWNED: u8 = 7;

/// What writers write.
pub(crate) const WRITTEN: u8 = 8;

#[derive(Default)]
struct Peer {
    agents: Vec<Agent>,
    owned: Vec<RegisteredRegion<HostBuffer>>,
    writes: JoinSet<ErrorKind>,
}

#[test]
#[ignore = "run by the tests, as the peer"]
fn peer() {
    if !std::env::args().any(|arg| arg == AS_PEER) {
        return;
    }
    block_on(async {
        let mut peer = Peer::default();
        for line in std::io::stdin().lines().map_while(Result::ok) {
            let words: Vec<_> = line.split(' ').collect();
            answer(&peer.answer(&words).await);
        }
    });
}

impl Peer {
    async fn answer(&mut self, words: &[&str]) -> String {
        match *words {
            ["own", backend, memory, ref address @ ..] => {
                let config = match address {
                    [address] => {
                        config_at("owner", backend.parse().unwrap(), address.parse().unwrap())
                    }
                    _ => config("owner", backend.parse().unwrap()),
                };
                let agent = Agent::start(config).await.unwrap();
                let mut memory = match memory {
                    "shared" => HostBuffer::shared(REGION_BYTES).unwrap(),
                    _ => HostBuffer::new(REGION_BYTES),
                };
                memory.fill(OWNED);
                let region = agent.register_peer_writable(vec![memory]).unwrap();
                let metadata = agent.metadata([region.grant()]).unwrap();
                self.agents.push(agent);
                self.owned.push(region);
                to_hex(&metadata)
            }
            ["write", backend, metadata] => {
                self.write(backend.parse().unwrap(), &from_hex(metadata)).await;
                "writing".to_owned()
            }
            // How the writes ended.
            ["ended"] => {
                let ended = tokio::time::timeout(PATIENCE, self.writes.join_next()).await;
                format!("{:?}", ended.expect("the writes end").unwrap().unwrap())
            }
            ref other => unreachable!("{other:?}"),
        }
    }

    /// Writes again and again, until that fails; returns when it has begun.
    async fn write(&mut self, backend: BackendKind, metadata: &[u8]) {
        let agent = agents::agent("writer", backend).await;
        let peer = load(&agent, metadata);
        let mut memory = HostBuffer::new(usize::try_from(peer.regions()[0].len()).unwrap());
        memory.fill(WRITTEN);
        let source = agent.register(vec![memory]).unwrap();
        // Long enough for a process that is stopped meanwhile.
        let deadline = 9 * PATIENCE;
        let write = move |agent: &Agent| move_all(agent, &peer, &source, deadline, true);
        let first = write(&agent);
        begun(&first).await;
        let writer = agent.clone();
        self.writes.spawn(async move {
            let mut writing = first;
            loop {
                match writing.await {
                    Ok(_) => writing = write(&writer),
                    Err(error) => return error.kind(),
                }
            }
        });
        self.agents.push(agent);
    }
}
