use std::fmt;
use std::str::FromStr;

use tokio_rustls::rustls::pki_types::CertificateDer;

use crate::error::{Error, Result};
use crate::name::{EndpointPath, Name};
use crate::protocol::InstanceId;

/// What a certificate says of its holder: a SAN URI `dyn://cluster/namespace/component`, with
/// `/instance` behind it if it is good for one instance only.
///
/// Each part is a whole [`Name`], so there are no wildcards; a certificate for several components
/// has several URIs. The instance is the lower-case hexadecimal number that [`InstanceId`] shows.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub struct Identity {
    /// The cluster that the holder belongs to.
    pub cluster: Name,
    /// The namespace it serves in.
    pub namespace: Name,
    /// The component it serves.
    pub component: Name,
    /// The one instance it may be; any without it.
    pub instance: Option<InstanceId>,
}

impl Identity {
    /// Tells whether the holder may serve `endpoint` as `instance`, the cluster aside.
    pub fn covers(&self, endpoint: &EndpointPath, instance: InstanceId) -> bool {
        self.namespace == endpoint.namespace
            && self.component == endpoint.component
            && self.instance.is_none_or(|own| own == instance)
    }
}

impl FromStr for Identity {
    type Err = Error;

    /// Fails with [`InvalidArgument`](crate::ErrorKind::InvalidArgument), naming the URI.
    fn from_str(uri: &str) -> Result<Self> {
        let invalid =
            || Error::invalid(format!("{uri:?} is not dyn://cluster/namespace/component"));
        let mut parts = uri.strip_prefix(SCHEME).ok_or_else(invalid)?.split('/');
        let mut name = || {
            let part = parts.next().ok_or_else(invalid)?;
            Name::new(part).map_err(|error| invalid().with_source(error))
        };
        let (cluster, namespace, component) = (name()?, name()?, name()?);
        let instance = match parts.next() {
            None => None,
            Some(part) => {
                let id = u64::from_str_radix(part, 16).map(InstanceId).ok();
                // One instance is written in one way.
                Some(id.filter(|id| id.to_string() == part).ok_or_else(invalid)?)
            }
        };
        if parts.next().is_some() {
            return Err(invalid());
        }
        Ok(Self { cluster, namespace, component, instance })
    }
}

impl fmt::Display for Identity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{SCHEME}{}/{}/{}", self.cluster, self.namespace, self.component)?;
        self.instance.map_or(Ok(()), |instance| write!(f, "/{instance}"))
    }
}

/// Returns the identities in a certificate, and the URIs that try to be one and are not.
pub(super) fn identities(certificate: &CertificateDer<'_>) -> (Vec<Identity>, Vec<Error>) {
    let Ok(certificate) = webpki::EndEntityCert::try_from(certificate) else {
        return (Vec::new(), vec![Error::invalid("not an X.509 certificate")]);
    };
    let (mut good, mut bad) = (Vec::new(), Vec::new());
    for uri in certificate.valid_uri_names().filter(|uri| uri.starts_with(SCHEME)) {
        match uri.parse() {
            Ok(identity) => good.push(identity),
            Err(error) => bad.push(error),
        }
    }
    (good, bad)
}

/// Writes identities as part of a message, a few of them at most.
pub(super) fn list(identities: &[Identity]) -> String {
    const SHOWN_MAX: usize = 4;
    let shown: Vec<_> = identities.iter().take(SHOWN_MAX).map(ToString::to_string).collect();
    match identities.len() {
        0 => "nobody".to_owned(),
        count if count > SHOWN_MAX => {
            format!("{} and {} more", shown.join(", "), count - SHOWN_MAX)
        }
        _ => shown.join(", "),
    }
}

/// An identity that is taken from a certificate is written as it was read.
///
/// # Panics
/// If not.
#[cfg(any(test, feature = "test-util"))]
pub fn fuzz_certificate(data: &[u8]) {
    let (own, _) = identities(&CertificateDer::from(data));
    for identity in &own {
        assert!(identity.to_string().parse::<Identity>().is_ok_and(|again| again == *identity));
    }
    assert!(list(&own).len() < 2048);
    if let Ok(text) = std::str::from_utf8(data)
        && let Ok(identity) = text.parse::<Identity>()
    {
        assert_eq!(identity.to_string(), text);
    }
}

const SCHEME: &str = "dyn://";

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_identity_is_read_as_it_is_written_and_in_no_other_way() {
        for good in ["dyn://blue/n/c", "dyn://blue/n/c/7f3", "dyn://blue/n/c/0"] {
            assert_eq!(good.parse::<Identity>().unwrap().to_string(), good);
        }
        for bad in [
            "dyn://blue/n",
            "dyn://blue/n/c/",
            "dyn://blue/n/c/07f3",
            "dyn://blue/n/c/7F3",
            "dyn://blue/n/c/+1",
            "dyn://blue/n/c/7f3/x",
            "dyn://blue/n/*",
            "dyn://blue/n/c/*",
            "dyn:///n/c",
            "spiffe://blue/n/c",
        ] {
            let error = bad.parse::<Identity>().unwrap_err();
            assert!(error.message().contains(bad), "{error}");
        }
    }

    #[test]
    fn an_identity_covers_its_component_and_its_instance_and_no_other() {
        let path = |namespace: &str, component: &str| EndpointPath {
            namespace: Name::new(namespace).unwrap(),
            component: Name::new(component).unwrap(),
            endpoint: Name::new("e").unwrap(),
        };
        let covers = |uri: &str, path: &EndpointPath, id| {
            uri.parse::<Identity>().unwrap().covers(path, InstanceId(id))
        };
        assert!(covers("dyn://blue/n/c", &path("n", "c"), 1));
        assert!(covers("dyn://blue/n/c/1", &path("n", "c"), 1));
        assert!(!covers("dyn://blue/n/c/1", &path("n", "c"), 0x10));
        assert!(!covers("dyn://blue/n/c", &path("n", "c2"), 1));
        assert!(!covers("dyn://blue/n/c", &path("n2", "c"), 1));
    }
}
