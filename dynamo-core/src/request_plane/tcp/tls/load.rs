use std::fs::File;
use std::io::Read;
use std::sync::Arc;

use tokio_rustls::rustls::client::Resumption;
use tokio_rustls::rustls::client::danger::ServerCertVerifier;
use tokio_rustls::rustls::crypto::{CryptoProvider, ring};
use tokio_rustls::rustls::pki_types::pem::PemObject;
use tokio_rustls::rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime};
use tokio_rustls::rustls::server::danger::ClientCertVerifier;
use tokio_rustls::rustls::sign::CertifiedKey;
use tokio_rustls::rustls::version::TLS13;
use tokio_rustls::rustls::{
    ClientConfig, Error as TlsError, RootCertStore, ServerConfig, server, sign,
};

use super::config::{Pem, TlsConfig};
use super::identity::{Identity, identities, list};
use super::verify::Verifier;
use crate::error::{Error, Result};

/// What new connections are made with.
pub(super) struct Loaded {
    pub(super) client: Arc<ClientConfig>,
    /// Only with a certificate can a plane be connected to.
    pub(super) server: Option<Arc<ServerConfig>>,
    /// Who this plane is to its peers.
    pub(super) own: Vec<Identity>,
}

/// The text of everything that `config` names, read at one time.
pub(super) struct Texts {
    roots: Vec<u8>,
    certificate: Option<(Vec<u8>, Vec<u8>)>,
}

impl Texts {
    /// Reads what `config` names, on the caller's thread.
    pub(super) fn read(config: &TlsConfig) -> Result<Self> {
        let certificate = match &config.certificate {
            None => None,
            Some((chain, key)) => Some((read(CHAIN, chain)?, read(KEY, key)?)),
        };
        Ok(Self { roots: read(ROOTS, &config.roots)?, certificate })
    }

    /// Returns a number that changes when the text does.
    pub(super) fn digest(&self) -> u128 {
        let mut hasher = xxhash_rust::xxh3::Xxh3::new();
        let (chain, key) = self.certificate.as_ref().map_or((&[][..], &[][..]), |(c, k)| (c, k));
        for text in [&self.roots, chain, key] {
            hasher.update(&text.len().to_le_bytes());
            hasher.update(text);
        }
        hasher.digest128()
    }

    /// Makes what connections are made with, or says which part of it is no good.
    pub(super) fn load(&self, config: &TlsConfig, listens: bool) -> Result<Loaded> {
        let provider = Arc::new(ring::default_provider());
        let roots = self.roots(&config.roots)?;
        let anonymous = config.anonymous_clients_allowed;
        let verifier =
            Verifier::new(config.cluster.clone(), roots, anonymous, Arc::clone(&provider));
        let verifier = Arc::new(verifier.map_err(|error| invalid(ROOTS, &config.roots, error))?);
        let shown = match (&self.certificate, &config.certificate) {
            (Some((chain, key)), Some(at)) => Some(own_key((chain, key), at, &provider)?),
            _ => None,
        };
        let mut own = Vec::new();
        if let (Some(key), Some((at, _))) = (&shown, &config.certificate) {
            own = own_identities(&key.cert, at, config)?;
            check(&verifier, &key.cert, listens).map_err(|error| invalid(CHAIN, at, error))?;
        } else if listens {
            return Err(Error::invalid("a TLS plane that listens needs a certificate"));
        }
        let (client, server) = build(provider, verifier, shown)?;
        Ok(Loaded { client, server, own })
    }

    fn roots(&self, at: &Pem) -> Result<RootCertStore> {
        let mut roots = RootCertStore::empty();
        for certificate in certificates(&self.roots, ROOTS, at)? {
            roots.add(certificate).map_err(|error| invalid(ROOTS, at, error))?;
        }
        Ok(roots)
    }
}

fn read(what: &str, pem: &Pem) -> Result<Vec<u8>> {
    let path = match pem {
        Pem::Bytes(bytes) => return Ok(bytes.clone()),
        Pem::File(path) => path,
    };
    let mut text = Vec::new();
    let file = File::open(path).map_err(|error| invalid(what, pem, error))?;
    file.take(PEM_BYTES_MAX + 1)
        .read_to_end(&mut text)
        .map_err(|error| invalid(what, pem, error))?;
    if text.len() as u64 > PEM_BYTES_MAX {
        return Err(invalid(what, pem, "larger than a megabyte"));
    }
    Ok(text)
}

fn certificates(text: &[u8], what: &str, at: &Pem) -> Result<Vec<CertificateDer<'static>>> {
    let certificates: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(text).collect();
    let certificates = certificates.map_err(|error| invalid(what, at, error))?;
    if certificates.is_empty() {
        return Err(invalid(what, at, "no certificate in it"));
    }
    Ok(certificates)
}

/// Returns the own certificate with its key, if they fit together.
fn own_key(
    (chain, key): (&[u8], &[u8]),
    (chain_at, key_at): &(Pem, Pem),
    provider: &CryptoProvider,
) -> Result<Arc<CertifiedKey>> {
    let chain = certificates(chain, CHAIN, chain_at)?;
    let key = PrivateKeyDer::from_pem_slice(key).map_err(|error| invalid(KEY, key_at, error))?;
    let key = provider.key_provider.load_private_key(key);
    let key = CertifiedKey::new(chain, key.map_err(|error| invalid(KEY, key_at, error))?);
    key.keys_match().map_err(|error| {
        let message = format!("{KEY} ({key_at}) does not fit {CHAIN} ({chain_at})");
        Error::invalid(message).with_source(error)
    })?;
    Ok(Arc::new(key))
}

fn own_identities(
    chain: &[CertificateDer<'_>],
    at: &Pem,
    config: &TlsConfig,
) -> Result<Vec<Identity>> {
    let (own, bad) = chain.first().map(identities).unwrap_or_default();
    if let Some(bad) = bad.into_iter().next() {
        return Err(invalid(CHAIN, at, bad));
    }
    if !own.iter().any(|identity| identity.cluster == config.cluster) {
        let who = format!("it is of {}, nobody of cluster {}", list(&own), config.cluster);
        return Err(invalid(CHAIN, at, who));
    }
    Ok(own.into_iter().filter(|identity| identity.cluster == config.cluster).collect())
}

/// Fails if peers that trust the same roots would refuse the own certificate.
fn check(verifier: &Verifier, chain: &[CertificateDer<'_>], listens: bool) -> Result<(), TlsError> {
    let (own, intermediates) = chain.split_first().ok_or(TlsError::NoCertificatesPresented)?;
    let now = UnixTime::now();
    if listens {
        let anyone = ServerName::IpAddress(std::net::Ipv4Addr::LOCALHOST.into());
        verifier.verify_server_cert(own, intermediates, &anyone, &[], now).map(|_| ())
    } else {
        verifier.verify_client_cert(own, intermediates, now).map(|_| ())
    }
}

fn build(
    provider: Arc<CryptoProvider>,
    verifier: Arc<Verifier>,
    shown: Option<Arc<CertifiedKey>>,
) -> Result<(Arc<ClientConfig>, Option<Arc<ServerConfig>>)> {
    let internal = |error| Error::internal("TLS 1.3 of ring").with_source(error);
    let server = match &shown {
        None => None,
        Some(key) => {
            let config = ServerConfig::builder_with_provider(Arc::clone(&provider));
            let mut config = config
                .with_protocol_versions(&[&TLS13])
                .map_err(internal)?
                .with_client_cert_verifier(Arc::<Verifier>::clone(&verifier))
                .with_cert_resolver(Arc::new(sign::SingleCertAndKey::from(Arc::clone(key))));
            // Every connection is verified anew; they are few and live long.
            config.send_tls13_tickets = 0;
            config.session_storage = Arc::new(server::NoServerSessionStorage {});
            Some(Arc::new(config))
        }
    };
    let config = ClientConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&TLS13])
        .map_err(internal)?
        .dangerous()
        .with_custom_certificate_verifier(verifier);
    let mut client = match shown {
        None => config.with_no_client_auth(),
        Some(key) => config.with_client_cert_resolver(Arc::new(sign::SingleCertAndKey::from(key))),
    };
    client.resumption = Resumption::disabled();
    Ok((Arc::new(client), server))
}

fn invalid(
    what: &str,
    at: &Pem,
    why: impl Into<Box<dyn std::error::Error + Send + Sync>>,
) -> Error {
    let why = why.into();
    Error::invalid(format!("{what} ({at}): {why}")).with_source(why)
}

const ROOTS: &str = "trusted roots";
const CHAIN: &str = "certificate chain";
const KEY: &str = "private key";

/// Far beyond any bundle of roots; what is larger is no such file.
const PEM_BYTES_MAX: u64 = 1 << 20;
