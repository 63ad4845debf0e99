//! Attention that reads K and V where they are: in blocks.

use super::config::ModelConfig;

/// The K and V of one sequence, in blocks of a fixed number of tokens.
///
/// A plane is `[tokens, kv_heads, head_dim]`, row-major f32; block `i` holds the positions
/// `i * block_tokens ..`.
pub trait PagedKv: Sync {
    /// Returns how many tokens a block holds.
    fn block_tokens(&self) -> usize;

    /// Returns the K and V of one layer in one block.
    ///
    /// # Panics
    /// If there is no such block.
    fn planes(&self, layer: usize, block: usize) -> (&[f32], &[f32]);

    /// Returns the K and V of one layer in one block, to be written.
    ///
    /// # Panics
    /// If there is no such block, or it is shared.
    fn planes_mut(&mut self, layer: usize, block: usize) -> (&mut [f32], &mut [f32]);
}

/// K and V in vectors: for tests and for trying a model without a block manager.
#[derive(Debug)]
pub struct VecKv {
    block_tokens: usize,
    blocks: usize,
    /// K and V of each layer and block, layer by layer.
    planes: Vec<(Vec<f32>, Vec<f32>)>,
}

impl VecKv {
    /// Creates room for `tokens` tokens of `model`.
    pub fn new(model: &ModelConfig, block_tokens: usize, tokens: usize) -> Self {
        let blocks = tokens.div_ceil(block_tokens);
        let plane = vec![0.0; block_tokens * model.kv_heads * model.head_dim];
        let planes = vec![(plane.clone(), plane); model.layers * blocks];
        Self { block_tokens, blocks, planes }
    }
}

impl PagedKv for VecKv {
    fn block_tokens(&self) -> usize {
        self.block_tokens
    }

    fn planes(&self, layer: usize, block: usize) -> (&[f32], &[f32]) {
        let (keys, values) = &self.planes[layer * self.blocks + block];
        (keys, values)
    }

    fn planes_mut(&mut self, layer: usize, block: usize) -> (&mut [f32], &mut [f32]) {
        let (keys, values) = &mut self.planes[layer * self.blocks + block];
        (keys, values)
    }
}

/// Rotary position embedding (arXiv:2104.09864) over neighbouring pairs: GGUF stores the Q and K
/// rows of Llama permuted for this form.
pub(super) struct Rope {
    /// (cos, sin) of each position and pair, position by position.
    angles: Vec<(f32, f32)>,
    pairs: usize,
    positions: usize,
}

impl Rope {
    #[expect(clippy::cast_possible_truncation, reason = "the nearest f32 is meant")]
    pub(super) fn new(config: &ModelConfig, start: usize, positions: usize) -> Self {
        let pairs = config.head_dim / 2;
        let frequency = |pair: usize| {
            f64::from(config.rope_base).powf(-((2 * pair) as f64) / config.head_dim as f64)
        };
        let frequencies: Vec<_> = (0..pairs).map(frequency).collect();
        let angles = (start..start + positions)
            .flat_map(|position| frequencies.iter().map(move |f| position as f64 * f))
            .map(|angle| (angle.cos() as f32, angle.sin() as f32))
            .collect();
        Self { angles, pairs, positions }
    }

    /// Rotates `[positions, heads, head_dim]` in place.
    pub(super) fn rotate(&self, rows: &mut [f32]) {
        let row_len = rows.len() / self.positions;
        let angles = self.angles.chunks_exact(self.pairs);
        for (row, angles) in rows.chunks_exact_mut(row_len).zip(angles) {
            for head in row.chunks_exact_mut(2 * self.pairs) {
                for (pair, (cos, sin)) in head.as_chunks_mut::<2>().0.iter_mut().zip(angles) {
                    let [a, b] = *pair;
                    *pair = [a * cos - b * sin, a * sin + b * cos];
                }
            }
        }
    }
}

/// Attends `[n, heads, head_dim]` queries at positions `start..` to all K and V up to their own
/// position; returns the same shape.
pub(super) fn attend(
    config: &ModelConfig,
    kv: &dyn PagedKv,
    layer: usize,
    start: usize,
    queries: &[f32],
) -> Vec<f32> {
    let width = config.heads * config.head_dim;
    let mut attended = vec![0.0; queries.len()];
    let rows = queries.len() / width;
    // Each row is computed on its own: how they are shared out changes nothing in the result.
    let threads = if rows < ROWS_PER_THREAD_MIN * 2 { 1 } else { THREADS_MAX };
    let rows_each = rows.div_ceil(threads);
    std::thread::scope(|scope| {
        let parts = queries.chunks(rows_each * width).zip(attended.chunks_mut(rows_each * width));
        for (part, (queries, attended)) in parts.enumerate() {
            let first = start + part * rows_each;
            let mut work = move || attend_rows(config, kv, layer, first, queries, attended);
            if part + 1 == threads || threads == 1 {
                work();
            } else {
                scope.spawn(work);
            }
        }
    });
    attended
}

fn attend_rows(
    config: &ModelConfig,
    kv: &dyn PagedKv,
    layer: usize,
    first: usize,
    queries: &[f32],
    attended: &mut [f32],
) {
    let (head_dim, group) = (config.head_dim, config.heads / config.kv_heads);
    let kv_width = config.kv_heads * head_dim;
    let scale = (head_dim as f32).sqrt().recip();
    let width = config.heads * head_dim;
    let block_tokens = kv.block_tokens();
    let mut scores = Vec::new();
    let rows = queries.chunks_exact(width).zip(attended.chunks_exact_mut(width));
    for (position, (row, out)) in (first..).zip(rows) {
        let heads = row.chunks_exact(head_dim).zip(out.chunks_exact_mut(head_dim));
        for (head, (query, out)) in heads.enumerate() {
            let at = head / group * head_dim;
            scores.clear();
            for block in 0..=position / block_tokens {
                let (keys, _) = kv.planes(layer, block);
                let tokens = block_tokens.min(position + 1 - block * block_tokens);
                scores.extend(
                    keys.chunks_exact(kv_width)
                        .take(tokens)
                        .map(|key| dot(query, &key[at..at + head_dim]) * scale),
                );
            }
            softmax(&mut scores);
            for (block, weights) in scores.chunks(block_tokens).enumerate() {
                let (_, values) = kv.planes(layer, block);
                for (weight, value) in weights.iter().zip(values.chunks_exact(kv_width)) {
                    let value = &value[at..at + head_dim];
                    out.iter_mut().zip(value).for_each(|(out, value)| *out += weight * value);
                }
            }
        }
    }
}

/// Eight sums side by side: what lets the compiler use vector registers.
fn dot(a: &[f32], b: &[f32]) -> f32 {
    let (a_chunks, a_rest) = a.as_chunks::<8>();
    let (b_chunks, b_rest) = b.as_chunks::<8>();
    let mut sums = [0.0f32; 8];
    for (a, b) in a_chunks.iter().zip(b_chunks) {
        for lane in 0..8 {
            sums[lane] += a[lane] * b[lane];
        }
    }
    let rest: f32 = a_rest.iter().zip(b_rest).map(|(a, b)| a * b).sum();
    sums.iter().sum::<f32>() + rest
}

fn softmax(scores: &mut [f32]) {
    let max = scores.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let mut sum = 0.0;
    for score in scores.iter_mut() {
        *score = (*score - max).exp();
        sum += *score;
    }
    scores.iter_mut().for_each(|score| *score /= sum);
}

/// Below this a second thread costs more than it saves.
const ROWS_PER_THREAD_MIN: usize = 8;
const THREADS_MAX: usize = 2;
