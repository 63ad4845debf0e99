//! Models that are made up: whole files, small enough to be written by a test.

/// The shape of a model; it has four heads, of which two have KV of their own.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Size {
    pub(crate) layers: u32,
    /// A multiple of 32, as `ffn` is.
    pub(crate) dim: u32,
    pub(crate) ffn: u32,
    pub(crate) context: u32,
}

/// Writes a GGUF header: magic, version 3, tensor and metadata counts, then `rest`.
pub(crate) fn header(tensors: u64, metadata: u64, rest: &[u8]) -> Vec<u8> {
    let mut bytes = b"GGUF\x03\0\0\0".to_vec();
    bytes.extend(tensors.to_le_bytes());
    bytes.extend(metadata.to_le_bytes());
    bytes.extend(rest);
    bytes
}

/// Returns the file of a model of four tokens, and where its tensors' data starts.
pub(crate) fn file(size: Size) -> (Vec<u8>, usize) {
    let metadata = metadata(size);
    let (mut tensors, mut data) = (Vec::new(), Vec::new());
    let shapes = shapes(size);
    for (name, dims) in &shapes {
        let mut tensor = text(&format!("{name}.weight"));
        tensor.extend(u32::try_from(dims.len()).unwrap().to_le_bytes());
        dims.iter().for_each(|dim| tensor.extend(u64::from(*dim).to_le_bytes()));
        tensor.extend(0u32.to_le_bytes());
        tensor.extend((data.len() as u64).to_le_bytes());
        tensors.push(tensor);
        for index in 0..dims.iter().product::<u32>() {
            let noise = (index + 1).wrapping_mul(2_654_435_761) >> 16;
            let value = (noise as f32 / 32_768.0 - 1.0) * 8.0 / (size.dim as f32).sqrt();
            data.extend(value.to_le_bytes());
        }
    }
    let rest = [metadata.concat(), tensors.concat()].concat();
    let mut file = header(tensors.len() as u64, metadata.len() as u64, &rest);
    let data_start = file.len().next_multiple_of(32);
    file.resize(data_start, 0);
    file.extend(data);
    (file, data_start)
}

fn text(text: &str) -> Vec<u8> {
    [&(text.len() as u64).to_le_bytes()[..], text.as_bytes()].concat()
}

fn metadata(size: Size) -> Vec<Vec<u8>> {
    let tagged =
        |key: &str, kind: u32, value: &[u8]| [&text(key)[..], &kind.to_le_bytes(), value].concat();
    let texts = |items: &[&str]| {
        let mut list = [&8u32.to_le_bytes()[..], &(items.len() as u64).to_le_bytes()].concat();
        items.iter().for_each(|item| list.extend(text(item)));
        list
    };
    let mut metadata = vec![
        tagged("general.architecture", 8, &text("llama")),
        tagged("tokenizer.ggml.model", 8, &text("gpt2")),
        tagged("tokenizer.ggml.pre", 8, &text("smollm")),
        tagged("tokenizer.ggml.tokens", 9, &texts(&["<|end|>", "a", "b", "ab"])),
        tagged("tokenizer.ggml.merges", 9, &texts(&["a b"])),
        tagged("tokenizer.chat_template", 8, &text("{{ messages[0].content }}")),
        tagged("llama.attention.layer_norm_rms_epsilon", 6, &1e-5f32.to_le_bytes()),
    ];
    for (key, value) in [
        ("block_count", size.layers),
        ("embedding_length", size.dim),
        ("feed_forward_length", size.ffn),
        ("context_length", size.context),
        ("attention.head_count", 4),
        ("attention.head_count_kv", 2),
    ] {
        metadata.push(tagged(&format!("llama.{key}"), 4, &value.to_le_bytes()));
    }
    metadata
}

fn shapes(Size { layers, dim, ffn, .. }: Size) -> Vec<(String, Vec<u32>)> {
    let layer = |layer: u32| {
        [
            ("attn_norm", vec![dim]),
            ("attn_q", vec![dim, dim]),
            ("attn_k", vec![dim, dim / 2]),
            ("attn_v", vec![dim, dim / 2]),
            ("attn_output", vec![dim, dim]),
            ("ffn_norm", vec![dim]),
            ("ffn_gate", vec![dim, ffn]),
            ("ffn_up", vec![dim, ffn]),
            ("ffn_down", vec![ffn, dim]),
        ]
        .map(|(name, dims)| (format!("blk.{layer}.{name}"), dims))
    };
    let ends = [("token_embd", vec![dim, 4]), ("output_norm", vec![dim])];
    let ends = ends.map(|(name, dims)| (name.to_owned(), dims));
    ends.into_iter().chain((0..layers).flat_map(layer)).collect()
}
