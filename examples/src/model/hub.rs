//! A model's folder as Hugging Face and the engines that read it lay it out: its text side.

use std::path::{Path, PathBuf};

use serde_json::Value;

use super::chat::ChatTemplate;
use super::error::{Error, Result};
use super::tokenizer::Tokenizer;

/// What a front end needs of a model's folder: no weights.
#[derive(Debug)]
pub struct HubFolder {
    /// Text ↔ tokens, as `tokenizer.json` says.
    pub tokenizer: Tokenizer,
    /// Messages → prompt, if the folder has a template: `chat_template.jinja`, or else the one in
    /// `tokenizer_config.json`.
    pub template: Option<ChatTemplate>,
    /// The longest sequence in tokens (`max_position_embeddings`); an engine may be told to serve
    /// shorter ones only.
    pub context_len: usize,
    /// The tokens with which the model ends an answer, ascending: the tokenizer's, and those of
    /// `generation_config.json`, or else of `config.json`.
    pub end_tokens: Vec<u32>,
}

impl HubFolder {
    /// Reads a folder.
    ///
    /// Fails with an [`Error`] that names the file if `tokenizer.json` or `config.json` is missing or
    /// says nothing that can be used, or if another one is there and broken.
    pub fn read(folder: &Path) -> Result<Self> {
        let file = |name: &str| File::read(folder.join(name));
        let needed = |name: &str| file(name)?.ok_or_else(|| missing(folder, name));
        let config = needed("config.json")?.json()?;
        let tokenizer_config = optional(file("tokenizer_config.json")?)?;
        let special = optional(file("special_tokens_map.json")?)?;
        let named =
            |key: &str| [&tokenizer_config, &special].into_iter().find_map(|f| text(&f[key]));
        let inner = needed("tokenizer.json")?.tokenizer()?;
        let tokenizer = Tokenizer::new(inner, named("bos_token"), named("eos_token"));
        let template = match file("chat_template.jinja")? {
            Some(template) => Some(template.text()?),
            None => template(&tokenizer_config["chat_template"]).map(str::to_owned),
        };
        let template = template.map(|source| ChatTemplate::new(source, &tokenizer)).transpose()?;
        let generation = optional(file("generation_config.json")?)?;
        let ends = [&generation["eos_token_id"], &config["eos_token_id"]];
        let ends = ends.into_iter().find(|ends| !ends.is_null());
        let own = tokenizer.eos().and_then(|eos| tokenizer.token(eos));
        let mut end_tokens = ends.map_or_else(Vec::new, numbers);
        end_tokens.extend(own);
        end_tokens.sort_unstable();
        end_tokens.dedup();
        let context_len = context_len(&config).ok_or_else(|| {
            malformed(&folder.join("config.json"), "has no max_position_embeddings above 0")
        })?;
        Ok(Self { tokenizer, template, context_len, end_tokens })
    }
}

/// A file of the folder.
struct File {
    path: PathBuf,
    bytes: Vec<u8>,
}

impl File {
    /// Reads a file; one that is not there is none.
    fn read(path: PathBuf) -> Result<Option<Self>> {
        match std::fs::read(&path) {
            Ok(bytes) => Ok(Some(Self { path, bytes })),
            Err(source) if source.kind() == std::io::ErrorKind::NotFound => Ok(None),
            Err(source) => Err(Error::Io { path, source }),
        }
    }

    fn json(&self) -> Result<Value> {
        let value: Value =
            serde_json::from_slice(&self.bytes).map_err(|error| malformed(&self.path, error))?;
        match value.is_object() {
            true => Ok(value),
            false => Err(malformed(&self.path, "is no JSON object")),
        }
    }

    fn text(self) -> Result<String> {
        String::from_utf8(self.bytes).map_err(|error| malformed(&self.path, error))
    }

    fn tokenizer(&self) -> Result<tokenizers::Tokenizer> {
        let bad = |error| malformed(&self.path, error);
        let mut tokenizer = tokenizers::Tokenizer::from_bytes(&self.bytes).map_err(bad)?;
        // How its training cut and filled up texts is nothing that an engine does with a prompt.
        tokenizer.with_truncation(None).map_err(bad)?;
        tokenizer.with_padding(None);
        Ok(tokenizer)
    }
}

/// Returns what a file says, or nothing if it is not there.
fn optional(file: Option<File>) -> Result<Value> {
    file.map_or(Ok(Value::Null), |file| file.json())
}

fn missing(folder: &Path, name: &str) -> Error {
    let source = std::io::ErrorKind::NotFound.into();
    Error::Io { path: folder.join(name), source }
}

fn malformed(path: &Path, why: impl std::fmt::Display) -> Error {
    Error::Malformed { path: path.to_owned(), why: why.to_string() }
}

/// Returns a special token: its text, or an object with the text in it.
fn text(token: &Value) -> Option<String> {
    token.as_str().or_else(|| token["content"].as_str()).map(str::to_owned)
}

/// Returns a chat template: its text, or the default one of a list.
fn template(value: &Value) -> Option<&str> {
    let default = || value.as_array()?.iter().find(|item| item["name"] == "default");
    value.as_str().or_else(|| default()?["template"].as_str())
}

/// Returns a token's number, or several.
fn numbers(value: &Value) -> Vec<u32> {
    let list = value.as_array().map_or_else(|| std::slice::from_ref(value), Vec::as_slice);
    list.iter().filter_map(|id| id.as_u64().and_then(|id| u32::try_from(id).ok())).collect()
}

/// Models that read more than text have a configuration within theirs.
fn context_len(config: &Value) -> Option<usize> {
    let lens = [config, &config["text_config"]].map(|config| &config["max_position_embeddings"]);
    let len = lens.into_iter().find_map(Value::as_u64).filter(|len| *len > 0)?;
    usize::try_from(len).ok()
}
