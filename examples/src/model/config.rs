use super::error::{Error, Result};
use super::gguf::{Gguf, Value};

/// The shape of a Llama-architecture model.
#[derive(Debug, Clone, PartialEq)]
pub struct ModelConfig {
    /// The name the file gives itself.
    pub name: String,
    /// Transformer layers.
    pub layers: usize,
    /// Width of the hidden state.
    pub dim: usize,
    /// Query heads.
    pub heads: usize,
    /// KV heads; `heads` is a multiple.
    pub kv_heads: usize,
    /// Elements per head.
    pub head_dim: usize,
    /// Width of the feed-forward layer.
    pub ffn_dim: usize,
    /// Tokens in the vocabulary.
    pub vocab: usize,
    /// The longest sequence in tokens.
    pub context: usize,
    /// The base of RoPE's wavelengths.
    pub rope_base: f32,
    /// Added to the mean square in RMS norm.
    pub rms_eps: f32,
    /// The tokens with which the model ends an answer.
    pub eos_token_ids: Vec<u32>,
}

impl ModelConfig {
    pub(super) fn from_gguf(gguf: &Gguf<'_>) -> Result<Self> {
        let architecture = gguf.require("general.architecture")?.as_text().unwrap_or("?");
        if architecture != "llama" {
            return Err(Error::Unsupported(format!("architecture {architecture}")));
        }
        let size = |key: &str| size(gguf, key);
        #[expect(clippy::cast_possible_truncation, reason = "the nearest f32 is meant")]
        let float = |key: &str| gguf.get(key).and_then(Value::as_float).map(|v| v as f32);
        let (heads, dim) = (size("llama.attention.head_count")?, size("llama.embedding_length")?);
        let kv_heads = match gguf.get("llama.attention.head_count_kv") {
            None => heads,
            Some(_) => size("llama.attention.head_count_kv")?,
        };
        if !dim.is_multiple_of(heads) || !heads.is_multiple_of(kv_heads) {
            let message = format!("{heads} heads, {kv_heads} KV heads, width {dim}");
            return Err(Error::Corrupt(message));
        }
        let head_dim = dim / heads;
        if gguf.get("llama.rope.dimension_count").is_some()
            && size("llama.rope.dimension_count")? != head_dim
        {
            return Err(Error::Unsupported("RoPE over a part of the head".to_owned()));
        }
        if !head_dim.is_multiple_of(2) {
            return Err(Error::Corrupt(format!("{head_dim} elements per head")));
        }
        let eos = gguf.get("tokenizer.ggml.eos_token_id").and_then(Value::as_usize);
        let tokens = gguf.require("tokenizer.ggml.tokens")?.as_list();
        Ok(Self {
            name: gguf.get("general.name").and_then(Value::as_text).unwrap_or("llama").to_owned(),
            layers: size("llama.block_count")?,
            dim,
            heads,
            kv_heads,
            head_dim,
            ffn_dim: size("llama.feed_forward_length")?,
            vocab: tokens.map_or(0, <[Value]>::len),
            context: size("llama.context_length")?,
            rope_base: float("llama.rope.freq_base").unwrap_or(10_000.0),
            rms_eps: float("llama.attention.layer_norm_rms_epsilon")
                .ok_or_else(|| Error::Missing("llama.attention.layer_norm_rms_epsilon".into()))?,
            eos_token_ids: eos.and_then(|id| u32::try_from(id).ok()).into_iter().collect(),
        })
    }
}

/// Reads a size that is neither zero nor absurd.
fn size(gguf: &Gguf<'_>, key: &str) -> Result<usize> {
    let value = gguf.require(key)?.as_usize().filter(|value| (1..=SIZE_MAX).contains(value));
    value.ok_or_else(|| Error::Corrupt(key.to_owned()))
}

/// Above any model's width, depth or context.
const SIZE_MAX: usize = 1 << 24;
