use std::collections::HashSet;

use tokenizers::decoders::byte_level::ByteLevel as ByteLevelDecoder;
use tokenizers::models::bpe::{BPE, Vocab};
use tokenizers::pre_tokenizers::byte_level::ByteLevel;
use tokenizers::pre_tokenizers::digits::Digits;
use tokenizers::pre_tokenizers::sequence::Sequence;
use tokenizers::{AddedToken, DecoderWrapper, PreTokenizerWrapper};

use super::error::{Error, Result};
use super::gguf::{Gguf, Value};

/// Text ↔ tokens.
#[derive(Debug)]
pub struct Tokenizer {
    inner: tokenizers::Tokenizer,
    /// The tokens that no text stands for.
    special: HashSet<u32>,
    bos: Option<String>,
    eos: Option<String>,
}

impl Tokenizer {
    pub(super) fn new(
        inner: tokenizers::Tokenizer,
        bos: Option<String>,
        eos: Option<String>,
    ) -> Self {
        let added = inner.get_added_tokens_decoder().into_iter();
        let special = added.filter(|(_, token)| token.special).map(|(id, _)| id).collect();
        Self { inner, special, bos, eos }
    }

    /// Builds byte-level BPE: digits one by one, then the byte-level split.
    pub(super) fn from_gguf(gguf: &Gguf<'_>) -> Result<Self> {
        let kind = gguf.require("tokenizer.ggml.model")?.as_text().unwrap_or("?");
        if kind != "gpt2" {
            return Err(Error::Unsupported(format!("tokenizer of kind {kind}")));
        }
        let split = gguf.require("tokenizer.ggml.pre")?.as_text().unwrap_or("?");
        if !DIGITS_THEN_BYTES.contains(&split) {
            return Err(Error::Unsupported(format!("pre-tokenizer {split}")));
        }
        let tokens = texts(gguf, "tokenizer.ggml.tokens")?;
        let merges = texts(gguf, "tokenizer.ggml.merges")?
            .into_iter()
            .map(|merge| match merge.split_once(' ') {
                Some((a, b)) => Ok((a.to_owned(), b.to_owned())),
                None => Err(Error::Corrupt(format!("merge {merge:?}"))),
            })
            .collect::<Result<Vec<_>>>()?;
        let vocab: Vocab =
            (0u32..).zip(&tokens).map(|(id, token)| ((*token).to_owned(), id)).collect();
        let bpe = BPE::builder()
            .vocab_and_merges(vocab, merges)
            .build()
            .map_err(|error| Error::Tokenizer(error.to_string()))?;
        let mut inner = tokenizers::Tokenizer::new(bpe);
        let splits = vec![
            PreTokenizerWrapper::Digits(Digits::new(true)),
            PreTokenizerWrapper::ByteLevel(ByteLevel::new(false, false, true)),
        ];
        inner.with_pre_tokenizer(Some(PreTokenizerWrapper::Sequence(Sequence::new(splits))));
        let decoder = DecoderWrapper::ByteLevel(ByteLevelDecoder::new(false, false, false));
        inner.with_decoder(Some(decoder));
        let special = special_tokens(gguf, &tokens);
        inner.add_special_tokens(special).map_err(|error| Error::Tokenizer(error.to_string()))?;
        let named = |key: &str| {
            let id = gguf.get(key).and_then(Value::as_usize)?;
            tokens.get(id).map(|token| (*token).to_owned())
        };
        Ok(Self::new(
            inner,
            named("tokenizer.ggml.bos_token_id"),
            named("tokenizer.ggml.eos_token_id"),
        ))
    }

    /// Returns the tokens of `text`; special tokens written out in it are recognised.
    pub fn encode(&self, text: &str) -> Result<Vec<u32>> {
        self.tokens(text, false)
    }

    /// Returns the tokens of `text` between those that the tokenizer puts around every sequence, such
    /// as the one that begins it: for text that no chat template has rendered.
    pub fn encode_sequence(&self, text: &str) -> Result<Vec<u32>> {
        self.tokens(text, true)
    }

    fn tokens(&self, text: &str, is_sequence: bool) -> Result<Vec<u32>> {
        let encoding = self.inner.encode_fast(text, is_sequence);
        let encoding = encoding.map_err(|error| Error::Tokenizer(error.to_string()))?;
        Ok(encoding.get_ids().to_vec())
    }

    /// Returns the text of `tokens`, special tokens left out.
    pub fn decode(&self, tokens: &[u32]) -> Result<String> {
        self.inner.decode(tokens, true).map_err(|error| Error::Tokenizer(error.to_string()))
    }

    /// Tells whether no text stands for `token`.
    pub fn is_special(&self, token: u32) -> bool {
        self.special.contains(&token)
    }

    /// Returns the number of a token written out, if there is such a token.
    pub fn token(&self, text: &str) -> Option<u32> {
        self.inner.token_to_id(text)
    }

    /// Returns the text of the token that starts a sequence.
    pub fn bos(&self) -> Option<&str> {
        self.bos.as_deref()
    }

    /// Returns the text of the token that ends a sequence.
    pub fn eos(&self) -> Option<&str> {
        self.eos.as_deref()
    }
}

/// The pre-tokenizers of llama.cpp that share this split; another one would give wrong tokens.
const DIGITS_THEN_BYTES: [&str; 4] = ["smollm", "starcoder", "refact", "command-r"];

/// Tokens of type 3 ("control") are special.
fn special_tokens(gguf: &Gguf<'_>, tokens: &[&str]) -> Vec<AddedToken> {
    let types = gguf.get("tokenizer.ggml.token_type").and_then(Value::as_list).unwrap_or_default();
    let special = tokens.iter().zip(types).filter(|(_, kind)| kind.as_usize() == Some(3));
    special.map(|(token, _)| AddedToken::from(*token, true)).collect()
}

fn texts<'a>(gguf: &'a Gguf<'_>, key: &str) -> Result<Vec<&'a str>> {
    let items = gguf.require(key)?.as_list().map(|list| list.iter().map(Value::as_text));
    items.and_then(Iterator::collect).ok_or_else(|| Error::Corrupt(key.to_owned()))
}
