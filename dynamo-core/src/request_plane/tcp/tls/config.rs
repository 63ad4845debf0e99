use std::fmt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use crate::name::Name;

/// How connections of a TCP plane are encrypted, and who may be at their other end.
///
/// Both sides show a certificate: its chain ends in the trusted roots, and a SAN URI in it,
/// [`dyn://cluster/namespace/component`](super::Identity), says what it may serve. A guide is in
/// `docs/tls.md`.
///
/// ```
/// use dynamo_core::name::Name;
/// use dynamo_core::request_plane::{Pem, TcpConfig, TlsConfig};
///
/// # fn main() -> dynamo_core::Result<()> {
/// let tls = TlsConfig::new(Name::new("blue")?, Pem::file("/etc/dynamo/ca.pem"))
///     .with_certificate(Pem::file("/etc/dynamo/tls.pem"), Pem::file("/etc/dynamo/tls.key"));
/// let config = TcpConfig::default().with_tls(tls);
/// # Ok(())
/// # }
/// ```
#[derive(Debug, Clone, serde::Deserialize)]
#[serde(deny_unknown_fields)]
#[non_exhaustive]
pub struct TlsConfig {
    /// The cluster that this plane belongs to: who is of another one is refused.
    pub cluster: Name,
    /// The certificates that the chain of every peer has to end in.
    pub roots: Pem,
    /// What the plane shows of itself: its certificate with those that lead to a root, and the
    /// private key. Only a plane that does not listen can be without.
    #[serde(default)]
    pub certificate: Option<(Pem, Pem)>,
    /// Clients may come without a certificate: has to be said.
    #[serde(default)]
    pub anonymous_clients_allowed: bool,
    /// How often the files are looked at for a change; never without it.
    #[serde(default, deserialize_with = "some_duration")]
    pub reload_every: Option<Duration>,
}

impl TlsConfig {
    /// Trusts `roots` for peers of `cluster`.
    pub fn new(cluster: Name, roots: Pem) -> Self {
        Self {
            cluster,
            roots,
            certificate: None,
            anonymous_clients_allowed: false,
            reload_every: None,
        }
    }

    /// Shows the certificate that `chain` starts with, whose private key is `key`.
    #[must_use]
    pub fn with_certificate(mut self, chain: Pem, key: Pem) -> Self {
        self.certificate = Some((chain, key));
        self
    }

    /// Lets in clients that show no certificate; a certificate that is shown has to be good still.
    #[must_use]
    pub fn with_anonymous_clients_allowed(mut self) -> Self {
        self.anonymous_clients_allowed = true;
        self
    }

    /// Looks at the files each `interval`, a tenth of a second at least, and takes what they hold
    /// when it has changed and is good.
    #[must_use]
    pub fn with_reload_every(mut self, interval: Duration) -> Self {
        self.reload_every = Some(interval);
        self
    }
}

fn some_duration<'de, D: serde::Deserializer<'de>>(from: D) -> Result<Option<Duration>, D::Error> {
    crate::time::duration(from).map(Some)
}

/// Where PEM text is; bytes are never shown.
#[derive(Clone, PartialEq, Eq, serde::Deserialize)]
#[serde(from = "PathBuf")]
#[non_exhaustive]
pub enum Pem {
    /// A file, read at the start and at each reload.
    File(PathBuf),
    /// The text itself.
    Bytes(Vec<u8>),
}

impl Pem {
    /// Reads the file at `path`.
    pub fn file(path: impl AsRef<Path>) -> Self {
        Self::File(path.as_ref().to_owned())
    }

    /// Takes the text itself.
    pub fn bytes(text: impl Into<Vec<u8>>) -> Self {
        Self::Bytes(text.into())
    }
}

impl From<PathBuf> for Pem {
    fn from(path: PathBuf) -> Self {
        Self::File(path)
    }
}

impl fmt::Display for Pem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::File(path) => write!(f, "{}", path.display()),
            Self::Bytes(bytes) => write!(f, "{} bytes given", bytes.len()),
        }
    }
}

impl fmt::Debug for Pem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Pem({self})")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn debug_shows_no_byte_of_a_key() {
        let config = TlsConfig::new(Name::new("blue").unwrap(), Pem::file("/roots"))
            .with_certificate(Pem::bytes("chain"), Pem::bytes("canary"));
        let shown = format!("{config:?}");
        assert!(!shown.contains("canary") && shown.contains("/roots"), "{shown}");
    }
}
