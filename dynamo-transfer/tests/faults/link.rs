//! A peer whose network goes away and comes back.
//!
//! ```text
//! this process ── veth ── namespace of the owner
//! ```

use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use dynamo_transfer::{Agent, AgentConfig, BackendKind, ErrorKind};

use crate::agents::{PATIENCE, REGION_BYTES, SLACK, begun, block_on, close, read, say, target};
use crate::held::Held;
use crate::peer::OWNED;
use crate::process::{Process, load};

/// A namespace, and a link to it; gone with this value.
struct Network {
    name: String,
    net: String,
}

impl Network {
    /// Makes it, or says why it cannot.
    fn start() -> Result<Self, String> {
        let pid = std::process::id();
        // Of its own, so that two runs at once do not meet.
        let net = format!("10.{}.{}", 128 + pid / 100 % 64, pid % 100 * 2);
        let network = Self { name: format!("dyt{pid}"), net };
        let Self { name, net } = &network;
        ip(&format!("netns add {name}"))?;
        ip(&format!("link add {name} type veth peer name own netns {name}"))?;
        ip(&format!("addr add {net}.1/30 dev {name}"))?;
        ip(&format!("link set {name} up"))?;
        ip(&format!("-n {name} addr add {net}.2/30 dev own"))?;
        ip(&format!("-n {name} link set lo up"))?;
        network.set("up")?;
        Ok(network)
    }

    /// Sets the owner's end of the link up or down.
    fn set(&self, state: &str) -> Result<(), String> {
        ip(&format!("-n {} link set own {state}", self.name))
    }
}

impl Drop for Network {
    fn drop(&mut self) {
        // The link goes with it; one that is not there is none to remove.
        let _ = ip(&format!("netns delete {}", self.name));
    }
}

fn ip(args: &str) -> Result<(), String> {
    let mut command = Command::new("ip");
    let silent = command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    match silent.args(args.split(' ')).status() {
        Ok(status) if status.success() => Ok(()),
        Ok(status) => Err(format!("ip {args}: {status}")),
        Err(error) => Err(format!("ip: {error}")),
    }
}

#[test]
fn a_link_that_goes_down_is_given_up_at_the_deadline_and_is_used_again_when_it_comes_up() {
    let network = match Network::start() {
        Ok(network) => network,
        Err(why) => {
            return say(&format!(
                "SKIPPED: a link that goes down needs root and `ip` ({why}); \
                 `apt-get install iproute2`, and run the tests as root"
            ));
        }
    };
    block_on(async {
        let mut owner = Process::start_behind(&["ip", "netns", "exec", &network.name]);
        let address = format!("{}.2:0", network.net).parse().unwrap();
        let metadata = owner.own_at(BackendKind::Tcp, address);
        let agent = Agent::start(AgentConfig::default().with_name("reader")).await.unwrap();
        let (peer, region) = (load(&agent, &metadata), target(&agent));
        read(&agent, &peer, &region, PATIENCE).await.unwrap();
        let before = Held::now(&agent);
        let deadline = Duration::from_secs(1);
        for _ in 0..2 {
            let posted = Instant::now();
            let transfers: Vec<_> =
                (0..8).map(|_| read(&agent, &peer, &region, deadline)).collect();
            begun(&transfers[0]).await;
            network.set("down").unwrap();
            let mut cut_off = 0;
            for transfer in transfers {
                let Err(error) = transfer.await else { continue };
                assert_eq!(error.kind(), ErrorKind::DeadlineExceeded, "{error}");
                cut_off += 1;
            }
            assert!(posted.elapsed() < deadline + 2 * SLACK, "{:?}", posted.elapsed());
            assert!(cut_off > 0, "all were complete before the link went down");
            network.set("up").unwrap();
            let report = read(&agent, &peer, &region, PATIENCE).await.unwrap();
            assert_eq!(report.bytes, REGION_BYTES as u64);
        }
        before.again(&agent).await;
        assert!(close(region).await.iter().all(|byte| *byte == OWNED));
        agent.shutdown().await;
    });
}
