//! A Llama-architecture model from a GGUF file, on the CPU; and the text side of any model, from such
//! a file or a Hugging Face folder.
//!
//! `candle-core` multiplies; everything else (file format, attention over blocks, RoPE, sampling)
//! stands here, because the KV cache is the SDK's own block memory and is read and written in
//! place. The projections are requantised to Q8_0 when loaded: in the weight form most files come
//! in (4 bits) the CPU kernels are an order of magnitude slower.

mod attention;
mod chat;
mod config;
mod detokenizer;
mod error;
mod forward;
mod gguf;
mod hub;
mod sample;
mod tokenizer;
mod weights;

use std::path::Path;

pub use attention::{PagedKv, VecKv};
pub use chat::{ChatTemplate, Message};
pub use config::ModelConfig;
pub use detokenizer::Detokenizer;
pub use error::{Error, Result};
pub use hub::HubFolder;
pub use sample::sample;
pub use tokenizer::Tokenizer;

use gguf::Gguf;
use weights::Weights;

/// Weights and configuration; shared by all sequences.
#[derive(Debug)]
pub struct Model {
    config: ModelConfig,
    weights: Weights,
}

/// Everything a GGUF file holds for serving.
#[derive(Debug)]
pub struct Loaded {
    /// The model.
    pub model: Model,
    /// Text ↔ tokens.
    pub tokenizer: Tokenizer,
    /// Messages → prompt, if the file has a template.
    pub template: Option<ChatTemplate>,
}

impl Loaded {
    /// Reads a file, telling `progress` how many of how many tensors are done.
    ///
    /// Fails with a typed [`Error`] on a file that is missing, truncated, corrupt or of another
    /// architecture.
    pub fn read(path: &Path, progress: &mut dyn FnMut(usize, usize)) -> Result<Self> {
        let bytes =
            std::fs::read(path).map_err(|source| Error::Io { path: path.to_owned(), source })?;
        Self::from_bytes(&bytes, progress)
    }

    /// Reads a file's bytes; see [`read`](Self::read).
    pub fn from_bytes(bytes: &[u8], progress: &mut dyn FnMut(usize, usize)) -> Result<Self> {
        let gguf = Gguf::parse(bytes)?;
        let config = ModelConfig::from_gguf(&gguf)?;
        let tokenizer = Tokenizer::from_gguf(&gguf)?;
        let template = ChatTemplate::from_gguf(&gguf, &tokenizer)?;
        let weights = Weights::from_gguf(&gguf, &config, progress)?;
        Ok(Self { model: Model { config, weights }, tokenizer, template })
    }
}

impl Model {
    /// Returns the shape of the model.
    pub fn config(&self) -> &ModelConfig {
        &self.config
    }

    /// Computes `tokens`, the first of which stands at position `start`, and returns the logits
    /// (`[vocab]`) of the last one.
    ///
    /// Reads the K and V of all positions before `start` and writes those of `tokens`. The result
    /// does not depend on how a prompt is cut into calls.
    pub fn forward(&self, tokens: &[u32], start: usize, kv: &mut dyn PagedKv) -> Result<Vec<f32>> {
        forward::forward(&self.config, &self.weights, tokens, start, kv)
    }
}
