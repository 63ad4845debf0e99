use super::port::Port;
use super::rails::Rails;

/// The port that messages take, and the rails of one-sided access.
pub(super) struct Net {
    pub(super) port: Port,
    pub(super) rails: Rails,
}

impl Net {
    /// Lets UCX work; tells whether it had anything to do.
    pub(super) fn progress(&mut self) -> bool {
        self.port.progress() | self.rails.progress()
    }

    /// Tells whether UCX has called back and nobody has looked.
    pub(super) fn has_events(&mut self) -> bool {
        !self.port.inbox.is_empty() || self.rails.each().any(|(_, port)| !port.inbox.is_empty())
    }
}
