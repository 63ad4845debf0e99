//! Models' folders that are made up: a tokenizer for any text, a chat template, limits.

use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering};

use serde_json::{Map, Value, json};

/// The tokens that no text stands for come first.
pub(crate) const END: u32 = 0;
pub(crate) const START: u32 = 1;
/// The token of byte 0; the others follow.
pub(crate) const BYTES: u32 = 2;

/// A folder; dropping it removes it.
pub(crate) struct Folder(PathBuf);

impl Folder {
    /// Writes a folder of these files.
    pub(crate) fn of(files: &[(&str, String)]) -> Self {
        static COUNT: AtomicUsize = AtomicUsize::new(0);
        let count = COUNT.fetch_add(1, Ordering::Relaxed);
        let name = format!("dynamo-folder-{}-{count}", std::process::id());
        let folder = std::env::temp_dir().join(name);
        std::fs::create_dir_all(&folder).unwrap();
        for (name, text) in files {
            std::fs::write(folder.join(name), text).unwrap();
        }
        Self(folder)
    }

    /// Writes the folder of a model with a token for each byte, one for each sequence to start
    /// with, and one for an answer to end with.
    pub(crate) fn of_bytes() -> Self {
        let template = "{% for message in messages %}<{{ message['role'].upper() }}>\
            {{ message['content'] | trim }}{{ eos_token }}{% endfor %}\
            {% if add_generation_prompt %}<A>{% endif %}";
        Self::of(&[
            ("tokenizer.json", byte_tokenizer().to_string()),
            ("chat_template.jinja", template.to_owned()),
            ("config.json", json!({ "max_position_embeddings": 512 }).to_string()),
            (
                "tokenizer_config.json",
                json!({ "bos_token": "<|start|>", "eos_token": { "content": "<|end|>" } })
                    .to_string(),
            ),
        ])
    }

    pub(crate) fn path(&self) -> &Path {
        &self.0
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

/// A tokenizer of the byte-level kind, whose only merge is that of `a` and `b`.
fn byte_tokenizer() -> Value {
    let mut vocab = Map::new();
    vocab.insert("<|end|>".to_owned(), json!(END));
    vocab.insert("<|start|>".to_owned(), json!(START));
    let mut odd = 256;
    for byte in 0..=255u32 {
        // Bytes that are no printable letter of Latin-1 are written as letters behind it.
        let is_letter = matches!(byte, 33..=126 | 161..=172 | 174..=255);
        let letter = if is_letter { byte } else { odd };
        odd += u32::from(!is_letter);
        vocab.insert(char::from_u32(letter).unwrap().to_string(), json!(BYTES + byte));
    }
    vocab.insert("ab".to_owned(), json!(BYTES + 256));
    let bytes = json!({
        "type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": true,
    });
    tokenizer(json!({
        "added_tokens": [special(END, "<|end|>"), special(START, "<|start|>")],
        "pre_tokenizer": bytes,
        "decoder": bytes,
        "post_processor": {
            "type": "TemplateProcessing",
            "single": [
                { "SpecialToken": { "id": "<|start|>", "type_id": 0 } },
                { "Sequence": { "id": "A", "type_id": 0 } },
            ],
            "pair": [
                { "Sequence": { "id": "A", "type_id": 0 } },
                { "Sequence": { "id": "B", "type_id": 1 } },
            ],
            "special_tokens": {
                "<|start|>": { "id": "<|start|>", "ids": [START], "tokens": ["<|start|>"] },
            },
        },
        "model": model(vocab, json!(["a b"]), false),
    }))
}

/// Completes a `tokenizer.json`.
pub(crate) fn tokenizer(mut fields: Value) -> Value {
    for field in
        ["truncation", "padding", "normalizer", "pre_tokenizer", "post_processor", "decoder"]
    {
        if fields.get(field).is_none() {
            fields[field] = Value::Null;
        }
    }
    fields["version"] = json!("1.0");
    fields
}

/// A model of byte pairs.
pub(crate) fn model(vocab: Map<String, Value>, merges: Value, byte_fallback: bool) -> Value {
    json!({
        "type": "BPE", "dropout": null, "unk_token": null, "continuing_subword_prefix": null,
        "end_of_word_suffix": null, "fuse_unk": false, "byte_fallback": byte_fallback,
        "ignore_merges": false, "vocab": vocab, "merges": merges,
    })
}

pub(crate) fn special(id: u32, content: &str) -> Value {
    json!({
        "id": id, "content": content, "single_word": false, "lstrip": false, "rstrip": false,
        "normalized": false, "special": true,
    })
}
