//! A server behind a router that can swallow what goes to it and what comes from it.
//!
//! ```text
//! this process ── veth ── router namespace ── veth ── server namespace
//! ```

use std::process::{Command, Stdio};

use anyhow::{Context as _, Result, ensure};

/// Two namespaces; gone with this value.
pub(crate) struct Network {
    router: String,
    server: String,
    net: String,
}

impl Network {
    /// Makes them, or says why it cannot.
    pub(crate) fn start() -> Result<Self> {
        let pid = std::process::id();
        // Of its own, so that two runs at once do not meet.
        let net = format!("10.{}.{}", 64 + pid / 100 % 64, pid % 100 * 2);
        let (router, server) = (format!("dyn{pid}r"), format!("dyn{pid}s"));
        let network = Self { router, server, net };
        network.set_up().map(|()| network)
    }

    fn set_up(&self) -> Result<()> {
        let Self { router, server, net } = self;
        // Two nets of 16 and 64 addresses.
        let (near, far) = (format!("{net}.0/28"), format!("{net}.64/26"));
        let (host, gateway) = (format!("{net}.1"), format!("{net}.2"));
        ip(&format!("netns add {router}"))?;
        ip(&format!("netns add {server}"))?;
        ip(&format!("link add {router} type veth peer name near netns {router}"))?;
        ip(&format!("addr add {host}/28 dev {router}"))?;
        ip(&format!("link set {router} up"))?;
        ip(&format!("-n {router} addr add {gateway}/28 dev near"))?;
        ip(&format!("-n {router} link set near up"))?;
        ip(&format!("-n {router} link add far type veth peer name own netns {server}"))?;
        ip(&format!("-n {router} addr add {net}.65/26 dev far"))?;
        ip(&format!("-n {router} link set far up"))?;
        for number in 0..COUNT {
            ip(&format!("-n {server} addr add {}/26 dev own", self.address(number)))?;
        }
        ip(&format!("-n {server} link set own up"))?;
        ip(&format!("-n {server} link set lo up"))?;
        ip(&format!("-n {server} route add {near} via {net}.65"))?;
        ip(&format!("route add {far} via {gateway}"))?;
        let forwards = "echo 1 > /proc/sys/net/ipv4/ip_forward";
        let mut command = Command::new("ip");
        quiet(command.args(["netns", "exec", router, "sh", "-c", forwards]))
    }

    /// Returns one of the addresses of the server's namespace.
    pub(crate) fn address(&self, number: usize) -> String {
        format!("{}.{}", self.net, 66 + number)
    }

    /// Returns what is put in front of a program that runs in the server's namespace.
    pub(crate) fn inside(&self) -> [&str; 3] {
        ["netns", "exec", &self.server]
    }

    /// Swallows all packets to and from an address.
    pub(crate) fn swallow(&self, number: usize) -> Result<()> {
        let (router, address) = (&self.router, self.address(number));
        ip(&format!("-n {router} route add blackhole {address}/32"))?;
        ip(&format!("-n {router} rule add from {address} blackhole"))
    }
}

impl Drop for Network {
    fn drop(&mut self) {
        // Routes and links go with the namespaces; one that is not there is none to remove.
        for namespace in [&self.server, &self.router] {
            let _ = ip(&format!("netns delete {namespace}"));
        }
    }
}

fn ip(args: &str) -> Result<()> {
    quiet(Command::new("ip").args(args.split(' '))).with_context(|| format!("ip {args}"))
}

fn quiet(command: &mut Command) -> Result<()> {
    let silent = command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    let status = silent.status()?;
    ensure!(status.success(), "{status}");
    Ok(())
}

/// One address for each phase.
const COUNT: usize = 6;
