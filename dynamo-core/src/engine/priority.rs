use std::fmt;

/// How urgent a request is: 0 is the least, 7 the most.
#[derive(
    Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, serde::Serialize, serde::Deserialize,
)]
#[serde(try_from = "u8", into = "u8")]
pub struct Priority(u8);

impl Priority {
    /// Work that may wait for everything else.
    pub const LOWEST: Self = Self(0);
    /// Interactive work: the default.
    pub const NORMAL: Self = Self(4);
    /// Work that goes before everything else.
    pub const HIGHEST: Self = Self(7);

    /// Returns the priority `level`, or `None` above 7.
    pub const fn new(level: u8) -> Option<Self> {
        if level <= Self::HIGHEST.0 { Some(Self(level)) } else { None }
    }

    /// Returns the level, 0 to 7.
    pub const fn level(self) -> u8 {
        self.0
    }
}

impl Default for Priority {
    fn default() -> Self {
        Self::NORMAL
    }
}

impl fmt::Display for Priority {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(&self.0, f)
    }
}

impl TryFrom<u8> for Priority {
    type Error = crate::error::Error;

    fn try_from(level: u8) -> Result<Self, Self::Error> {
        Self::new(level)
            .ok_or_else(|| crate::error::Error::invalid(format!("priority {level} is above 7")))
    }
}

impl From<Priority> for u8 {
    fn from(priority: Priority) -> Self {
        priority.0
    }
}
