//! Where a configuration comes from.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::Read as _;
use std::path::Path;

use serde::Deserialize;

use super::RuntimeConfig;
use super::read::Bad;
use super::tree::Tree;
use crate::error::{Error, ErrorKind, Result};

impl RuntimeConfig {
    /// Reads the variables of the process that start with `DYNAMO_RUNTIME_`, see
    /// [`from_vars`](Self::from_vars).
    pub fn from_env() -> Result<Self> {
        #[expect(clippy::disallowed_methods, reason = "the application asks for it by this name")]
        let variables = std::env::vars_os();
        let ours = variables.filter(|(name, _)| name.to_string_lossy().starts_with(PREFIX));
        let texts = ours.map(|(name, value)| {
            let shown = name.to_string_lossy().into_owned();
            match (name.into_string(), value.into_string()) {
                (Ok(name), Ok(value)) => Ok((name, value)),
                _ => Err(Error::invalid(format!("variable {shown} is not UTF-8"))),
            }
        });
        Self::from_vars(texts.collect::<Result<Vec<_>>>()?)
    }

    /// Reads variables: `DYNAMO_RUNTIME_` and the path to the key in capitals, its parts joined by
    /// `__`; a list is separated by commas. Others are passed over.
    ///
    /// Fails with [`InvalidArgument`](ErrorKind::InvalidArgument), naming the variable, on one that
    /// stands for no key, a value that is none of its key, and what this build has no feature for.
    pub fn from_vars(variables: impl IntoIterator<Item = (String, String)>) -> Result<Self> {
        let mut tree = Tree::Table(BTreeMap::new());
        for (name, value) in variables {
            let Some(key) = name.strip_prefix(PREFIX) else { continue };
            let path: Vec<_> = key.split("__").map(str::to_ascii_lowercase).collect();
            tree.put(&path, Tree::Word(value)).map_err(|()| {
                Error::invalid(format!("variable {name} stands beside another for the same key"))
            })?;
        }
        read(tree, |path| format!("variable {PREFIX}{}", path.join("__").to_ascii_uppercase()))
    }

    /// Reads a file of TOML (`.toml`, feature `toml`) or YAML (`.yaml`, `.yml`, feature `yaml`);
    /// blocks while it does.
    ///
    /// Fails with [`NotFound`](ErrorKind::NotFound) if there is none, and
    /// [`InvalidArgument`](ErrorKind::InvalidArgument), naming file and key, on a key that is not
    /// known, a value that is none of its key, and what this build has no feature for.
    pub fn from_file(path: impl AsRef<Path>) -> Result<Self> {
        let path = path.as_ref();
        let file = format!("config file {}", path.display());
        let extension = path.extension().unwrap_or_default().to_string_lossy();
        let parse = match &*extension {
            "toml" => toml,
            "yaml" | "yml" => yaml,
            _ => return Err(Error::invalid(format!("{file} is neither .toml nor .yaml"))),
        };
        let text = text(path).map_err(|error| {
            let is_missing = error.kind() == std::io::ErrorKind::NotFound;
            let kind = if is_missing { ErrorKind::NotFound } else { ErrorKind::InvalidArgument };
            Error::new(kind, file.clone()).with_source(error)
        })?;
        let tree = parse(&text).map_err(|why| Error::invalid(format!("{file}: {why}")))?;
        read(tree, |path| format!("{file}: {}", path.join(".")))
    }
}

/// Reads a file that is not absurdly long.
fn text(path: &Path) -> std::io::Result<String> {
    let mut text = String::new();
    File::open(path)?.take(FILE_BYTES_MAX + 1).read_to_string(&mut text)?;
    if text.len() as u64 > FILE_BYTES_MAX {
        let message = format!("longer than {FILE_BYTES_MAX} bytes");
        return Err(std::io::Error::new(std::io::ErrorKind::FileTooLarge, message));
    }
    Ok(text)
}

#[cfg(feature = "toml")]
pub(super) fn toml(text: &str) -> Result<Tree, String> {
    toml::from_str(text).map_err(|error| {
        // The error itself would show the line.
        let before = error.span().and_then(|span| text.get(..span.start)).unwrap_or_default();
        let line = before.matches('\n').count() + 1;
        format!("line {line}: {}", error.message().replace('\n', " "))
    })
}

#[cfg(not(feature = "toml"))]
pub(super) fn toml(_: &str) -> Result<Tree, String> {
    Err(no_feature("toml"))
}

#[cfg(feature = "yaml")]
pub(super) fn yaml(text: &str) -> Result<Tree, String> {
    // A user called `n` is no truth value, and what is wrong is not shown.
    let options = serde_saphyr::options! { strict_booleans: true, with_snippet: false };
    serde_saphyr::from_str_with_options(text, options)
        .map_err(|error| error.to_string().replace('\n', " "))
}

#[cfg(not(feature = "yaml"))]
pub(super) fn yaml(_: &str) -> Result<Tree, String> {
    Err(no_feature("yaml"))
}

/// Understands a tree; `place` says where a path of keys is written.
pub(super) fn read(tree: Tree, place: impl Fn(&[String]) -> String) -> Result<RuntimeConfig> {
    for (path, feature, is_there) in FEATURES {
        if !is_there && tree.says(path) {
            let path: Vec<_> = path.iter().map(|&key| key.to_owned()).collect();
            return Err(Error::invalid(format!("{} {}", place(&path), no_feature(feature))));
        }
    }
    RuntimeConfig::deserialize(tree).map_err(|bad| {
        let Bad { path, message } = &bad;
        Error::invalid(format!("{} {message}", place(path)))
    })
}

fn no_feature(feature: &str) -> String {
    format!("needs the feature `{feature}` of dynamo-core, which this program is built without")
}

/// What asks for a technology, the feature it stands behind, and whether it is there.
const FEATURES: &[(&[&str], &str, bool)] = &[
    (&["discovery", "file"], "file", cfg!(all(feature = "file", unix))),
    (&["discovery", "etcd"], "etcd", cfg!(feature = "etcd")),
    (&["request_plane", "tcp"], "tcp", cfg!(feature = "tcp")),
    (&["request_plane", "tcp", "tls"], "tls", cfg!(feature = "tls")),
    (&["request_plane", "tcp", "codec", "json"], "json", cfg!(feature = "json")),
    (&["request_plane", "nats"], "nats", cfg!(feature = "nats")),
    (&["request_plane", "nats", "codec", "json"], "json", cfg!(feature = "json")),
    (&["event_plane", "nats"], "nats", cfg!(feature = "nats")),
];

/// What the names of our variables start with.
const PREFIX: &str = "DYNAMO_RUNTIME_";

/// Far above what a person writes, and a list of thousands of instances.
const FILE_BYTES_MAX: u64 = 4 << 20;
