use candle_core::quantized::{GgmlDType, QMatMul, QTensor, ggml_file};
use candle_core::{Device, Module, Tensor};

use super::config::ModelConfig;
use super::error::{Error, Result};
use super::gguf::Gguf;

/// The tensors of a model, ready to multiply.
#[derive(Debug)]
pub(super) struct Weights {
    /// `[vocab, dim]`, row-major.
    pub(super) embedding: Vec<f32>,
    pub(super) layers: Vec<Layer>,
    pub(super) output_norm: Vec<f32>,
    pub(super) output: Linear,
}

#[derive(Debug)]
pub(super) struct Layer {
    pub(super) attention_norm: Vec<f32>,
    pub(super) q: Linear,
    pub(super) k: Linear,
    pub(super) v: Linear,
    pub(super) o: Linear,
    pub(super) ffn_norm: Vec<f32>,
    pub(super) gate: Linear,
    pub(super) up: Linear,
    pub(super) down: Linear,
}

/// A matrix `[out, in]` that multiplies rows.
#[derive(Debug)]
pub(super) struct Linear {
    matrix: QMatMul,
    input: usize,
}

impl Linear {
    /// Multiplies rows of `[n, in]` and returns `[n, out]`, row-major.
    ///
    /// Each row is computed on its own, so the result does not depend on how many there are.
    pub(super) fn forward(&self, rows: &[f32]) -> Result<Vec<f32>> {
        let input = Tensor::from_slice(rows, (rows.len() / self.input, self.input), &Device::Cpu)?;
        Ok(self.matrix.forward(&input)?.flatten_all()?.to_vec1()?)
    }
}

impl Weights {
    pub(super) fn from_gguf(
        gguf: &Gguf<'_>,
        config: &ModelConfig,
        progress: &mut dyn FnMut(usize, usize),
    ) -> Result<Self> {
        let total = gguf.tensor_count();
        let mut done = 0;
        let mut loader = Loader {
            gguf,
            step: &mut || {
                done += 1;
                progress(done.min(total), total);
            },
        };
        let ModelConfig { dim, ffn_dim, vocab, heads, kv_heads, head_dim, .. } = *config;
        let (queries, keys) = (heads * head_dim, kv_heads * head_dim);
        let embedding = loader.floats("token_embd.weight", &[vocab, dim])?;
        // Small models tie the output to the embedding.
        let output = match gguf.tensor("output.weight") {
            Ok(_) => "output.weight",
            Err(Error::Missing(_)) => "token_embd.weight",
            Err(error) => return Err(error),
        };
        let output = loader.linear(output, vocab, dim)?;
        let output_norm = loader.floats("output_norm.weight", &[dim])?;
        let mut layers = Vec::new();
        for index in 0..config.layers {
            let name = |part: &str| format!("blk.{index}.{part}.weight");
            layers.push(Layer {
                attention_norm: loader.floats(&name("attn_norm"), &[dim])?,
                q: loader.linear(&name("attn_q"), queries, dim)?,
                k: loader.linear(&name("attn_k"), keys, dim)?,
                v: loader.linear(&name("attn_v"), keys, dim)?,
                o: loader.linear(&name("attn_output"), dim, queries)?,
                ffn_norm: loader.floats(&name("ffn_norm"), &[dim])?,
                gate: loader.linear(&name("ffn_gate"), ffn_dim, dim)?,
                up: loader.linear(&name("ffn_up"), ffn_dim, dim)?,
                down: loader.linear(&name("ffn_down"), dim, ffn_dim)?,
            });
        }
        Ok(Self { embedding, layers, output_norm, output })
    }
}

struct Loader<'a, 'f> {
    gguf: &'a Gguf<'f>,
    step: &'a mut dyn FnMut(),
}

impl Loader<'_, '_> {
    fn tensor(&mut self, name: &str, dims: &[usize]) -> Result<QTensor> {
        let raw = self.gguf.tensor(name)?;
        if raw.dims != dims {
            let message = format!("tensor {name} has shape {:?}, expected {dims:?}", raw.dims);
            return Err(Error::Corrupt(message));
        }
        (self.step)();
        // Candle reads blocks where they lie, and does not look at how they are aligned.
        let mut aligned = vec![0u64; raw.bytes.len().div_ceil(size_of::<u64>())];
        let bytes = &mut bytemuck::cast_slice_mut(&mut aligned)[..raw.bytes.len()];
        bytes.copy_from_slice(raw.bytes);
        Ok(ggml_file::qtensor_from_ggml(raw.dtype, bytes, raw.dims, &Device::Cpu)?)
    }

    fn floats(&mut self, name: &str, dims: &[usize]) -> Result<Vec<f32>> {
        let tensor = self.tensor(name, dims)?.dequantize(&Device::Cpu)?;
        Ok(tensor.flatten_all()?.to_vec1()?)
    }

    fn linear(&mut self, name: &str, output: usize, input: usize) -> Result<Linear> {
        let stored = self.tensor(name, &[output, input])?;
        let matrix = if input.is_multiple_of(GgmlDType::Q8_0.block_size()) {
            QTensor::quantize(&stored.dequantize(&Device::Cpu)?, GgmlDType::Q8_0)?
        } else {
            stored
        };
        Ok(Linear { matrix: QMatMul::from_qtensor(matrix)?, input })
    }
}
