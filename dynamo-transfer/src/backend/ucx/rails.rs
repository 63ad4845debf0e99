//! The ways memory of a peer is accessed without its thread: CMA on one host, RDMA between hosts.
//!
//! Each is a context of its own, made with remote memory access and nothing but the transports
//! that may carry it: an endpoint there cannot fall back to the emulation in software, which does
//! not check bounds. UCX wants a transport for messages beside CMA: shared memory, which only
//! processes that the kernel lets at this one's memory anyway can open. Whether a rail joins two
//! agents is found by making an endpoint; if none does, messages carry the data.

use std::fs;
use std::sync::Arc;

use super::config::UcxConfig;
use super::inbox::Inbox;
use super::library::Library;
use super::port::{EndpointId, Port};
use super::protocol::{RailKind, Rails as Addresses};
use super::sys;
use super::worker::{OnFailure, Worker};
use crate::backend::boot;
use crate::error::{Error, ErrorKind, Result};

pub(super) struct Rail {
    pub(super) port: Port,
    kind: RailKind,
    address: Vec<u8>,
}

pub(super) struct Rails {
    rails: Vec<Rail>,
    /// Tells hosts apart; empty if the system does not say.
    host: Vec<u8>,
}

/// An endpoint on a rail.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Joined {
    pub(super) rail: RailKind,
    pub(super) endpoint: EndpointId,
}

impl Rails {
    /// Starts what there is: not having any is no failure.
    pub(super) fn start(config: &UcxConfig, library: &Arc<Library>) -> Self {
        let host = boot::id().unwrap_or_default();
        let mut rails = Vec::new();
        if config.one_sided && !library.is_degraded() {
            for kind in [RailKind::Cma, RailKind::Rdma] {
                match Rail::start(config, library, kind) {
                    Ok(rail) => rails.push(rail),
                    Err(error) => tracing::debug!(%error, ?kind, "no one-sided access"),
                }
            }
        }
        Self { rails, host: host.trim_ascii().to_vec() }
    }

    /// Returns what peers need to join.
    pub(super) fn addresses(&self) -> Addresses {
        let of = |kind| {
            let rail = self.rails.iter().find(|rail| rail.kind == kind);
            rail.map(|rail| rail.address.clone()).unwrap_or_default()
        };
        Addresses { host: self.host.clone(), cma: of(RailKind::Cma), rdma: of(RailKind::Rdma) }
    }

    /// Makes an endpoint on the best rail that reaches a peer, if one does.
    pub(super) fn join(&mut self, peer: &Addresses) -> Option<Joined> {
        let is_same_host = !self.host.is_empty() && self.host == peer.host;
        for rail in &mut self.rails {
            let address = match rail.kind {
                RailKind::Cma if is_same_host => &peer.cma,
                RailKind::Cma => continue,
                RailKind::Rdma => &peer.rdma,
            };
            if address.is_empty() {
                continue;
            }
            match rail.port.connect(address) {
                Ok(endpoint) => return Some(Joined { rail: rail.kind, endpoint }),
                Err(error) => tracing::debug!(%error, rail = ?rail.kind, "peer not joined"),
            }
        }
        None
    }

    pub(super) fn get(&mut self, kind: RailKind) -> Option<&mut Port> {
        self.rails.iter_mut().find(|rail| rail.kind == kind).map(|rail| &mut rail.port)
    }

    pub(super) fn each(&mut self) -> impl Iterator<Item = (RailKind, &mut Port)> {
        self.rails.iter_mut().map(|rail| (rail.kind, &mut rail.port))
    }

    /// Progresses all; tells whether there was anything to do.
    pub(super) fn progress(&mut self) -> bool {
        self.rails.iter_mut().fold(false, |any, Rail { port, .. }| {
            // One step is one access over CMA: messages have their turn after some bytes, which
            // for small pieces are many steps.
            let steps = (TURN_BYTES / port.piece_bytes.max(1)).clamp(1, STEPS_MAX);
            (0..steps).take_while(|_| port.progress()).count() > 0 || any
        })
    }

    /// Tells whether it is fine to wait for the rails' descriptors.
    pub(super) fn arm(&self) -> Result<bool> {
        for rail in &self.rails {
            if !rail.port.worker.arm()? {
                return Ok(false);
            }
        }
        Ok(true)
    }

    pub(super) fn event_fds(&self) -> impl Iterator<Item = i32> {
        self.rails.iter().filter_map(|rail| rail.port.worker.event_fd().ok())
    }
}

impl Rail {
    fn start(config: &UcxConfig, library: &Arc<Library>, kind: RailKind) -> Result<Self> {
        let on_failure = match kind {
            // Its copies are system calls that end: a peer that is gone is an error of the next.
            RailKind::Cma => OnFailure::Nothing,
            RailKind::Rdma if !has_rdma() => {
                return Err(Error::new(ErrorKind::BackendUnavailable, "no device of RDMA"));
            }
            RailKind::Rdma => OnFailure::Handled,
        };
        let inbox = Inbox::new(library.functions().ucp_request_free);
        let settings = config.one_sided(kind);
        let mut worker = Worker::new(library, sys::FEATURE_RMA, &settings, &inbox)?;
        worker.on_failure = on_failure;
        let address = worker.address()?;
        Ok(Self { port: Port::new(worker, inbox), kind, address })
    }
}

/// What is copied over CMA before messages have their turn, if that is not more than so many steps.
const TURN_BYTES: usize = 256 << 10;
const STEPS_MAX: usize = 32;

/// Asks the kernel, and not UCX: that would complain of the lack on the process's output.
fn has_rdma() -> bool {
    fs::read_dir("/sys/class/infiniband").is_ok_and(|mut devices| devices.next().is_some())
}
