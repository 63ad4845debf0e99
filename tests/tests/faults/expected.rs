//! The table.

use dynamo_core::ErrorKind;

use super::{Fault, Phase};

/// How a request ends.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Expected {
    /// Its answer is complete.
    Complete,
    /// It fails so, and may be asked again without harm or not.
    Fails(ErrorKind, Again),
    /// Nobody is left to be told; the server's work ends.
    Ends,
    /// There is no such thing, and why.
    NoSense(&'static str),
}

/// Whether a failure says that nothing was started.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Again {
    Safe,
    Unsafe,
}

use Expected::{Complete, Ends, Fails, NoSense};

/// Nothing was sent, so that nothing can have started.
const NOT_STARTED: Expected = Fails(ErrorKind::Unavailable, Again::Safe);
/// The server may have begun: it does not say so before it has a stream.
const LOST: Expected = Fails(ErrorKind::Unavailable, Again::Unsafe);
const TOO_LATE: Expected = Fails(ErrorKind::DeadlineExceeded, Again::Unsafe);
const NOTHING_TO_READ: Expected = NoSense("nothing is sent before the first item");

#[rustfmt::skip]
pub(crate) const TABLE: [(Phase, Fault, Expected); 48] = {
    use Fault::*;
    use Phase::*;
    [
        (Connect, ClientDrops, Ends),
        (Connect, ClientKilled, Ends),
        (Connect, ServerKilled, NOT_STARTED),
        (Connect, ServerStopped, NOT_STARTED),
        (Connect, Reset, NOT_STARTED),
        (Connect, Blackhole, NOT_STARTED),
        (Connect, DiscoveryLoss, NOT_STARTED),
        (Connect, SlowReader, NOTHING_TO_READ),

        (BeforeAccept, ClientDrops, Ends),
        (BeforeAccept, ClientKilled, Ends),
        (BeforeAccept, ServerKilled, LOST),
        (BeforeAccept, ServerStopped, LOST),
        (BeforeAccept, Reset, LOST),
        (BeforeAccept, Blackhole, LOST),
        (BeforeAccept, DiscoveryLoss, Complete),
        (BeforeAccept, SlowReader, NOTHING_TO_READ),

        (Queued, ClientDrops, Ends),
        (Queued, ClientKilled, Ends),
        (Queued, ServerKilled, LOST),
        (Queued, ServerStopped, LOST),
        (Queued, Reset, LOST),
        (Queued, Blackhole, LOST),
        (Queued, DiscoveryLoss, Complete),
        (Queued, SlowReader, NOTHING_TO_READ),

        (BeforeFirstItem, ClientDrops, Ends),
        (BeforeFirstItem, ClientKilled, Ends),
        (BeforeFirstItem, ServerKilled, LOST),
        (BeforeFirstItem, ServerStopped, LOST),
        (BeforeFirstItem, Reset, LOST),
        (BeforeFirstItem, Blackhole, LOST),
        (BeforeFirstItem, DiscoveryLoss, Complete),
        (BeforeFirstItem, SlowReader, NOTHING_TO_READ),

        (MidStream, ClientDrops, Ends),
        (MidStream, ClientKilled, Ends),
        (MidStream, ServerKilled, LOST),
        (MidStream, ServerStopped, LOST),
        (MidStream, Reset, LOST),
        (MidStream, Blackhole, LOST),
        (MidStream, DiscoveryLoss, Complete),
        (MidStream, SlowReader, TOO_LATE),

        (Draining, ClientDrops, Ends),
        (Draining, ClientKilled, Ends),
        (Draining, ServerKilled, LOST),
        (Draining, ServerStopped, LOST),
        (Draining, Reset, LOST),
        (Draining, Blackhole, LOST),
        (Draining, DiscoveryLoss, Complete),
        (Draining, SlowReader, TOO_LATE),
    ]
};
