//! The table.

use std::time::Duration;

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
pub(crate) const NOT_STARTED: Expected = Fails(ErrorKind::Unavailable, Again::Safe);
/// The server may have begun: it does not say so before it has a stream.
const LOST: Expected = Fails(ErrorKind::Unavailable, Again::Unsafe);
const TOO_LATE: Expected = Fails(ErrorKind::DeadlineExceeded, Again::Unsafe);
const NOTHING_TO_READ: Expected = NoSense("nothing is sent before the first item");

/// How soon after the fault the request has ended, and how soon after that, or after the thaw of a
/// frozen server, nothing of it is left. What is promised is less; the rest is for a machine of two
/// cores on which eight cells run at once.
type Within = Duration;

/// An end that is said, or seen in the socket: within 50 ms.
const AT_ONCE: Within = Duration::from_secs(5);
/// A silent peer is given up after two and a half seconds, a connection that is being made after
/// three.
const SILENCE: Within = Duration::from_secs(8);
/// The deadline of who reads slowly, and the end at once.
const DEADLINE: Within = SLOW_DEADLINE.saturating_add(AT_ONCE);
const NEVER: Within = Duration::ZERO;

/// How long a slow reader's request has: in it, the server fills all windows.
pub(crate) const SLOW_DEADLINE: Duration = Duration::from_secs(3);

#[rustfmt::skip]
pub(crate) const TABLE: [(Phase, Fault, Expected, Within); 48] = {
    use Fault::*;
    use Phase::*;
    [
        (Connect, ClientDrops, Ends, AT_ONCE),
        (Connect, ClientKilled, Ends, AT_ONCE),
        (Connect, ServerKilled, NOT_STARTED, AT_ONCE),
        (Connect, ServerStopped, NOT_STARTED, SILENCE),
        (Connect, Reset, NOT_STARTED, AT_ONCE),
        (Connect, Blackhole, NOT_STARTED, SILENCE),
        (Connect, DiscoveryLoss, NOT_STARTED, AT_ONCE),
        (Connect, SlowReader, NOTHING_TO_READ, NEVER),

        (BeforeAccept, ClientDrops, Ends, AT_ONCE),
        (BeforeAccept, ClientKilled, Ends, AT_ONCE),
        (BeforeAccept, ServerKilled, LOST, AT_ONCE),
        (BeforeAccept, ServerStopped, LOST, SILENCE),
        (BeforeAccept, Reset, LOST, AT_ONCE),
        (BeforeAccept, Blackhole, LOST, SILENCE),
        (BeforeAccept, DiscoveryLoss, Complete, AT_ONCE),
        (BeforeAccept, SlowReader, NOTHING_TO_READ, NEVER),

        (Queued, ClientDrops, Ends, AT_ONCE),
        (Queued, ClientKilled, Ends, AT_ONCE),
        (Queued, ServerKilled, LOST, AT_ONCE),
        (Queued, ServerStopped, LOST, SILENCE),
        (Queued, Reset, LOST, AT_ONCE),
        (Queued, Blackhole, LOST, SILENCE),
        (Queued, DiscoveryLoss, Complete, AT_ONCE),
        (Queued, SlowReader, NOTHING_TO_READ, NEVER),

        (BeforeFirstItem, ClientDrops, Ends, AT_ONCE),
        (BeforeFirstItem, ClientKilled, Ends, AT_ONCE),
        (BeforeFirstItem, ServerKilled, LOST, AT_ONCE),
        (BeforeFirstItem, ServerStopped, LOST, SILENCE),
        (BeforeFirstItem, Reset, LOST, AT_ONCE),
        (BeforeFirstItem, Blackhole, LOST, SILENCE),
        (BeforeFirstItem, DiscoveryLoss, Complete, AT_ONCE),
        (BeforeFirstItem, SlowReader, NOTHING_TO_READ, NEVER),

        (MidStream, ClientDrops, Ends, AT_ONCE),
        (MidStream, ClientKilled, Ends, AT_ONCE),
        (MidStream, ServerKilled, LOST, AT_ONCE),
        (MidStream, ServerStopped, LOST, SILENCE),
        (MidStream, Reset, LOST, AT_ONCE),
        (MidStream, Blackhole, LOST, SILENCE),
        (MidStream, DiscoveryLoss, Complete, AT_ONCE),
        (MidStream, SlowReader, TOO_LATE, DEADLINE),

        (Draining, ClientDrops, Ends, AT_ONCE),
        (Draining, ClientKilled, Ends, AT_ONCE),
        (Draining, ServerKilled, LOST, AT_ONCE),
        (Draining, ServerStopped, LOST, SILENCE),
        (Draining, Reset, LOST, AT_ONCE),
        (Draining, Blackhole, LOST, SILENCE),
        (Draining, DiscoveryLoss, Complete, AT_ONCE),
        (Draining, SlowReader, TOO_LATE, DEADLINE),
    ]
};
