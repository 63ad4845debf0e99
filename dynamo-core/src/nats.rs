//! How NATS is reached, and who asks: what all planes over NATS share.

use std::fmt;
use std::path::PathBuf;
use std::time::Duration;

use async_nats::{Client, ConnectErrorKind, ConnectOptions};

use crate::error::{Error, ErrorKind, Result};
use crate::name::Name;
use crate::protocol::InstanceId;
use crate::random::Random;

/// Where NATS is, and how a plane connects to it.
#[derive(Clone, serde::Deserialize)]
#[serde(deny_unknown_fields)]
#[non_exhaustive]
pub struct NatsAccess {
    /// Where NATS answers, such as `nats://127.0.0.1:4222`; several are separated by commas.
    pub url: String,
    /// Who asks.
    #[serde(default)]
    pub identity: NatsIdentity,
    /// Nothing is said in plain text.
    #[serde(default)]
    pub tls_required: bool,
    /// A PEM file of the authorities that NATS may be certified by, instead of the system's.
    #[serde(default)]
    pub root_certificates: Option<PathBuf>,
    /// PEM files of a certificate and its key, to identify by.
    #[serde(default)]
    pub client_certificate: Option<(PathBuf, PathBuf)>,
}

/// Who a plane is to NATS.
#[derive(Clone, Default, serde::Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
#[non_exhaustive]
pub enum NatsIdentity {
    /// Nobody asks.
    #[default]
    Anonymous,
    /// By name and password.
    User {
        /// The name.
        name: String,
        /// The password.
        password: String,
    },
    /// By a token.
    Token(String),
    /// By the seed of an NKey, which itself never travels.
    NkeySeed(String),
    /// By a file with a JWT and the seed of its NKey, as `nsc` makes it.
    CredentialsFile(PathBuf),
}

impl NatsAccess {
    /// Reaches NATS at `url`.
    pub fn new(url: impl Into<String>) -> Self {
        Self {
            url: url.into(),
            identity: NatsIdentity::Anonymous,
            tls_required: false,
            root_certificates: None,
            client_certificate: None,
        }
    }

    /// Identifies as `identity`.
    #[must_use]
    pub fn with_identity(mut self, identity: NatsIdentity) -> Self {
        self.identity = identity;
        self
    }

    /// Says nothing in plain text.
    #[must_use]
    pub fn with_tls_required(mut self) -> Self {
        self.tls_required = true;
        self
    }

    /// Trusts the authorities in the PEM file `path`, and no other.
    #[must_use]
    pub fn with_root_certificates(mut self, path: impl Into<PathBuf>) -> Self {
        self.root_certificates = Some(path.into());
        self
    }

    /// Identifies by a certificate and its key, both PEM files.
    #[must_use]
    pub fn with_client_certificate(
        mut self,
        certificate: impl Into<PathBuf>,
        key: impl Into<PathBuf>,
    ) -> Self {
        self.client_certificate = Some((certificate.into(), key.into()));
        self
    }

    /// Connects, with options that `tune` sets; goes on to try in the background if NATS is not
    /// there yet, as it does later.
    ///
    /// Fails with [`InvalidArgument`](ErrorKind::InvalidArgument) on a file that cannot be used,
    /// and [`Unavailable`](ErrorKind::Unavailable) if NATS refuses.
    pub(crate) async fn connect(
        &self,
        tune: impl FnOnce(ConnectOptions) -> ConnectOptions,
    ) -> Result<Client> {
        let seed = InstanceId::random().0;
        let mut options = ConnectOptions::new()
            .connection_timeout(CONNECT_MAX)
            .ping_interval(PING_EACH)
            .reconnect_delay_callback(move |tries| reconnect_delay(seed, tries))
            .require_tls(self.tls_required);
        if let Some(path) = &self.root_certificates {
            options = options.add_root_certificates(path.clone());
        }
        if let Some((certificate, key)) = &self.client_certificate {
            options = options.add_client_certificate(certificate.clone(), key.clone());
        }
        options = match &self.identity {
            NatsIdentity::Anonymous => options,
            NatsIdentity::User { name, password } => {
                options.user_and_password(name.clone(), password.clone())
            }
            NatsIdentity::Token(token) => options.token(token.clone()),
            NatsIdentity::NkeySeed(seed) => options.nkey(seed.clone()),
            NatsIdentity::CredentialsFile(path) => {
                options.credentials_file(path).await.map_err(|error| {
                    let message = format!("NATS credentials {}", path.display());
                    Error::invalid(message).with_source(error)
                })?
            }
        };
        let options = tune(options);
        let refused = match Box::pin(options.clone().connect(&self.url)).await {
            Ok(client) => return Ok(client),
            Err(error) => error,
        };
        let is_final = matches!(
            refused.kind(),
            ConnectErrorKind::ServerParse
                | ConnectErrorKind::Authentication
                | ConnectErrorKind::AuthorizationViolation
                | ConnectErrorKind::Tls
        );
        let place = || format!("NATS at {}", self.place());
        if is_final {
            return Err(Error::new(ErrorKind::Unavailable, place()).with_source(refused));
        }
        tracing::warn!(error = %refused, "{} is not there yet", place());
        let later = Box::pin(options.retry_on_initial_connect().connect(&self.url)).await;
        later.map_err(|error| Error::new(ErrorKind::Unavailable, place()).with_source(error))
    }

    /// Returns the URL without what stands before an `@`: that may be a password.
    fn place(&self) -> String {
        let hosts = self.url.split(',').map(|url| url.rsplit('@').next().unwrap_or_default());
        hosts.collect::<Vec<_>>().join(",")
    }
}

impl<T: Into<String>> From<T> for NatsAccess {
    fn from(url: T) -> Self {
        Self::new(url)
    }
}

impl fmt::Debug for NatsAccess {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("NatsAccess")
            .field("url", &self.place())
            .field("identity", &self.identity)
            .field("tls_required", &self.tls_required)
            .field("root_certificates", &self.root_certificates)
            .field("client_certificate", &self.client_certificate)
            .finish()
    }
}

impl fmt::Debug for NatsIdentity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // No secret gets into a log.
        match self {
            Self::Anonymous => f.write_str("Anonymous"),
            Self::User { name, .. } => {
                f.debug_struct("User").field("name", name).finish_non_exhaustive()
            }
            Self::Token(_) => f.write_str("Token"),
            Self::NkeySeed(_) => f.write_str("NkeySeed"),
            Self::CredentialsFile(path) => f.debug_tuple("CredentialsFile").field(path).finish(),
        }
    }
}

/// Checks what all subjects start with: the rules of a name keep dots, wildcards and spaces out.
pub(crate) fn check_root(root: &str) -> Result<()> {
    Name::new(root).map(drop)
}

/// Returns how long to wait before the next try to connect: short, since a server that restarts is
/// back in a moment, and not the same for all, since they all lost it at once.
fn reconnect_delay(seed: u64, tries: usize) -> Duration {
    let doublings = u32::try_from(tries).unwrap_or(u32::MAX).min(3);
    let longest = RECONNECT_FIRST.saturating_mul(1 << doublings);
    let share = Random::new(seed.wrapping_add(tries as u64)).next_u64() % 1024;
    longest / 2 + longest * u32::try_from(share).unwrap_or(0) / 2048
}

/// What all subjects start with, unless something else is said.
pub(crate) fn default_root() -> String {
    "dynamo".to_owned()
}

/// A server that is there answers within this.
pub(crate) const CONNECT_MAX: Duration = Duration::from_secs(3);

/// Notices a server that is gone without a word.
const PING_EACH: Duration = Duration::from_secs(2);

/// The longest pause before the first try; it doubles up to 400 ms.
const RECONNECT_FIRST: Duration = Duration::from_millis(50);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_secret_is_printed() {
        let password = "hunter2";
        for identity in [
            NatsIdentity::User { name: "n".into(), password: password.into() },
            NatsIdentity::Token(password.into()),
            NatsIdentity::NkeySeed(password.into()),
        ] {
            let access = NatsAccess::new("nats://h:1").with_identity(identity);
            assert!(!format!("{access:?}").contains(password));
        }
        let access = NatsAccess::new("nats://n:hunter2@h:1,nats://i:2");
        assert_eq!(access.place(), "h:1,nats://i:2");
        assert!(!format!("{access:?}").contains(password));
    }

    #[test]
    fn tries_to_connect_are_short_bounded_and_spread() {
        for tries in 0..100 {
            let delays: Vec<_> = (0..50).map(|seed| reconnect_delay(seed, tries)).collect();
            assert!(delays.iter().all(|delay| *delay >= RECONNECT_FIRST / 2));
            assert!(delays.iter().all(|delay| *delay <= RECONNECT_FIRST * 8));
            assert!(delays.iter().collect::<std::collections::BTreeSet<_>>().len() > 10);
        }
    }

    #[tokio::test]
    async fn credentials_that_are_not_there_are_an_invalid_argument() {
        let identity = NatsIdentity::CredentialsFile("/nowhere/n.creds".into());
        let access = NatsAccess::new("nats://127.0.0.1:1").with_identity(identity);
        let error = access.connect(|options| options).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::InvalidArgument);
    }
}
