use std::path::PathBuf;

/// The result of a fallible operation of this module.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// Why a model cannot be loaded or run.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The file cannot be read.
    #[error("cannot read {}", path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// The file is something else.
    #[error("not a GGUF file: it starts with {0:02x?}")]
    NotGguf(Vec<u8>),
    /// The file ends too early.
    #[error("GGUF file is truncated in {0}")]
    Truncated(String),
    /// The file contradicts itself.
    #[error("GGUF file is corrupt: {0}")]
    Corrupt(String),
    /// The file holds a model that this engine cannot run.
    #[error("unsupported model: {0}")]
    Unsupported(String),
    /// The file lacks something.
    #[error("GGUF file has no {0}")]
    Missing(String),
    /// A file of a model's folder says nothing that can be used.
    #[error("{}: {why}", path.display())]
    Malformed {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        why: String,
    },
    /// Text and tokens do not go together.
    #[error("tokenizer: {0}")]
    Tokenizer(String),
    /// The chat template cannot be used.
    #[error("chat template: {0}")]
    Template(String),
    /// A request is outside what the model can do.
    #[error("{0}")]
    InvalidRequest(String),
    /// The multiplying library failed.
    #[error("computing")]
    Compute(#[from] candle_core::Error),
}
