//! The forward pass: RMS norm, attention over blocks, SwiGLU (Llama, arXiv:2302.13971).

use super::attention::{PagedKv, Rope, attend};
use super::config::ModelConfig;
use super::error::{Error, Result};
use super::weights::Weights;

pub(super) fn forward(
    config: &ModelConfig,
    weights: &Weights,
    tokens: &[u32],
    start: usize,
    kv: &mut dyn PagedKv,
) -> Result<Vec<f32>> {
    check(config, tokens, start)?;
    let dim = config.dim;
    let rope = Rope::new(config, start, tokens.len());
    let mut hidden = Vec::with_capacity(tokens.len() * dim);
    for &token in tokens {
        let row = token as usize * dim;
        hidden.extend_from_slice(&weights.embedding[row..row + dim]);
    }
    for (index, layer) in weights.layers.iter().enumerate() {
        let normed = rms_norm(&hidden, &layer.attention_norm, config.rms_eps);
        let mut queries = layer.q.forward(&normed)?;
        let mut keys = layer.k.forward(&normed)?;
        let values = layer.v.forward(&normed)?;
        rope.rotate(&mut queries);
        rope.rotate(&mut keys);
        store(config, kv, index, start, &keys, &values);
        let attended = attend(config, kv, index, start, &queries);
        add(&mut hidden, &layer.o.forward(&attended)?);

        let normed = rms_norm(&hidden, &layer.ffn_norm, config.rms_eps);
        let mut gate = layer.gate.forward(&normed)?;
        let up = layer.up.forward(&normed)?;
        gate.iter_mut().zip(&up).for_each(|(gate, up)| *gate = silu(*gate) * up);
        add(&mut hidden, &layer.down.forward(&gate)?);
    }
    let last = &hidden[hidden.len() - dim..];
    weights.output.forward(&rms_norm(last, &weights.output_norm, config.rms_eps))
}

fn check(config: &ModelConfig, tokens: &[u32], start: usize) -> Result<()> {
    let (count, context) = (tokens.len(), config.context);
    if count == 0 || start.checked_add(count).is_none_or(|end| end > context) {
        let message = format!("{count} tokens from position {start} of a context of {context}");
        return Err(Error::InvalidRequest(message));
    }
    match tokens.iter().find(|&&token| token as usize >= config.vocab) {
        Some(token) => Err(Error::InvalidRequest(format!("token {token} of {}", config.vocab))),
        None => Ok(()),
    }
}

/// Writes the K and V of `[n, kv_heads, head_dim]` to positions `start..`.
fn store(
    config: &ModelConfig,
    kv: &mut dyn PagedKv,
    layer: usize,
    start: usize,
    keys: &[f32],
    values: &[f32],
) {
    let width = config.kv_heads * config.head_dim;
    let block_tokens = kv.block_tokens();
    let rows = keys.chunks_exact(width).zip(values.chunks_exact(width));
    for (position, (key, value)) in (start..).zip(rows) {
        let (key_plane, value_plane) = kv.planes_mut(layer, position / block_tokens);
        let at = position % block_tokens * width;
        key_plane[at..at + width].copy_from_slice(key);
        value_plane[at..at + width].copy_from_slice(value);
    }
}

fn rms_norm(rows: &[f32], weight: &[f32], eps: f32) -> Vec<f32> {
    let mut normed = Vec::with_capacity(rows.len());
    for row in rows.chunks_exact(weight.len()) {
        let mean_square = row.iter().map(|x| x * x).sum::<f32>() / row.len() as f32;
        let scale = (mean_square + eps).sqrt().recip();
        normed.extend(row.iter().zip(weight).map(|(x, w)| x * scale * w));
    }
    normed
}

fn add(to: &mut [f32], from: &[f32]) {
    to.iter_mut().zip(from).for_each(|(to, from)| *to += from);
}

fn silu(x: f32) -> f32 {
    x / (1.0 + (-x).exp())
}
