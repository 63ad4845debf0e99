//! The real model's text side, as the front end asks for it.

use std::sync::Arc;

use dynamo_core::protocol::TokenId;

use crate::model::{ChatTemplate, Detokenizer, Message, Tokenizer};
use crate::openai::{Detokenize, TextModel};

/// Tokenizer and chat template of a model, with its name and limit.
#[derive(Debug)]
pub struct ModelText {
    id: String,
    context_len: usize,
    tokenizer: Arc<Tokenizer>,
    template: Option<ChatTemplate>,
}

impl ModelText {
    /// Serves under the name `id`, with sequences of at most `context_len` tokens.
    pub fn new(
        id: impl Into<String>,
        context_len: usize,
        tokenizer: Tokenizer,
        template: Option<ChatTemplate>,
    ) -> Self {
        Self { id: id.into(), context_len, tokenizer: Arc::new(tokenizer), template }
    }
}

impl TextModel for ModelText {
    fn id(&self) -> &str {
        &self.id
    }

    fn context_len(&self) -> usize {
        self.context_len
    }

    fn encode(&self, text: &str) -> Result<Vec<TokenId>, String> {
        self.tokenizer.encode(text).map_err(|error| error.to_string())
    }

    fn render_chat(&self, messages: &[Message]) -> Result<String, String> {
        let template = self.template.as_ref().ok_or("the model has no chat template")?;
        template.render(messages).map_err(|error| error.to_string())
    }

    fn detokenizer(&self) -> Box<dyn Detokenize> {
        let tokenizer = Arc::clone(&self.tokenizer);
        Box::new(Incremental { tokenizer, detokenizer: Detokenizer::default() })
    }
}

struct Incremental {
    tokenizer: Arc<Tokenizer>,
    detokenizer: Detokenizer,
}

impl Detokenize for Incremental {
    fn push(&mut self, token: TokenId) -> Result<String, String> {
        self.detokenizer.push(&self.tokenizer, token).map_err(|error| error.to_string())
    }

    fn finish(&mut self) -> Result<String, String> {
        self.detokenizer.finish(&self.tokenizer).map_err(|error| error.to_string())
    }
}
