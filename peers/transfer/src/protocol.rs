//! What a contender is asked, and what it answers: a line of JSON each. The scripts in `python/`
//! speak it too.

use serde::{Deserialize, Serialize};

/// Whom a command is for. A contender has a process for each; a copy inside a process has one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Side {
    Owner,
    Initiator,
}

impl Side {
    pub fn name(self) -> &'static str {
        match self {
            Self::Owner => "owner",
            Self::Initiator => "initiator",
        }
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Right {
    Read,
    Write,
}

impl Right {
    pub fn name(self) -> &'static str {
        match self {
            Self::Read => "read",
            Self::Write => "write",
        }
    }
}

/// `count` blocks of `block` bytes, each followed or preceded by a gap of its size: the initiator's
/// are the even ones, the owner's the odd ones.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Pattern {
    pub block: u64,
    pub count: u64,
}

impl Pattern {
    pub fn bytes(self) -> u64 {
        self.block * self.count
    }

    /// Returns how much memory it lies in, with the gaps.
    pub fn span(self) -> u64 {
        2 * self.bytes()
    }

    /// Returns where the first block of a side begins.
    pub fn first(self, side: Side) -> u64 {
        if side == Side::Owner { self.block } else { 0 }
    }

    /// Returns where the blocks of a side lie.
    pub fn ranges(self, side: Side) -> impl Iterator<Item = (u64, u64)> {
        let first = self.first(side);
        (0..self.count).map(move |index| (first + 2 * self.block * index, self.block))
    }

    /// Returns where the gaps of a side lie: the blocks of the other one.
    pub fn gaps(self, side: Side) -> impl Iterator<Item = (u64, u64)> {
        self.ranges(if side == Side::Owner { Side::Initiator } else { Side::Owner })
    }
}

#[derive(Debug, Serialize, Deserialize)]
pub struct Request {
    pub side: Side,
    #[serde(flatten)]
    pub command: Command,
}

#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(tag = "do", rename_all = "snake_case")]
pub enum Command {
    /// The initiator gets to know the owner's memory.
    Meet {
        offer: String,
    },
    /// Puts fresh random bytes where the pattern lies, gaps included.
    Scramble {
        pattern: Pattern,
        seed: u64,
    },
    /// Returns checksums of blocks and of gaps.
    Digest {
        pattern: Pattern,
    },
    /// The owner is ready to be asked; one that has to poll for that polls until the next command.
    Serve,
    Rest,
    /// The initiator makes one transfer of the whole pattern that is not timed, and `times` more.
    Bulk {
        right: Right,
        pattern: Pattern,
        times: u32,
    },
    /// The initiator describes the pattern and posts a read of it, each time anew; for ours only.
    Describe {
        form: Form,
        pattern: Pattern,
        times: u32,
    },
}

/// How many blocks are described.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Form {
    /// As a list of ranges.
    List,
    /// As a list of numbers of blocks that are laid out regularly.
    Blocks,
    /// As a run of those.
    Run,
}

/// Only what was asked for is there.
#[derive(Debug, Default, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Answer {
    pub error: Option<String>,
    /// Seconds that starting the engine took.
    pub start: f64,
    /// The owner's memory, for the initiator; comes again when it has changed.
    pub offer: Option<String>,
    pub blocks: u32,
    pub gaps: u32,
    /// Seconds of each transfer, from posting to its end.
    pub totals: Vec<f64>,
    /// Seconds that the caller was busy with posting it.
    pub posts: Vec<f64>,
}
