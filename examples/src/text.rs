//! The real model's text side, as the front end asks for it.

use std::sync::Arc;

use dynamo_core::protocol::TokenId;

use crate::model::{ChatTemplate, Detokenizer, HubFolder, Message, Tokenizer};
use crate::openai::{Detokenize, TextModel};

/// Tokenizer and chat template of a model, with its name and limit.
#[derive(Debug)]
pub struct ModelText {
    id: String,
    context_len: usize,
    tokenizer: Arc<Tokenizer>,
    template: Option<ChatTemplate>,
    end_tokens: Vec<TokenId>,
}

impl ModelText {
    /// Serves under the name `id`, with sequences of at most `context_len` tokens.
    pub fn new(
        id: impl Into<String>,
        context_len: usize,
        tokenizer: Tokenizer,
        template: Option<ChatTemplate>,
    ) -> Self {
        let (tokenizer, end_tokens) = (Arc::new(tokenizer), Vec::new());
        Self { id: id.into(), context_len, tokenizer, template, end_tokens }
    }

    /// Serves the model of a folder under the name `id`; its engine need not know how it ends.
    pub fn of_folder(id: impl Into<String>, folder: HubFolder) -> Self {
        let HubFolder { tokenizer, template, context_len, end_tokens } = folder;
        Self { end_tokens, ..Self::new(id, context_len, tokenizer, template) }
    }

    /// Serves sequences of at most `context_len` tokens, if the model does not end before.
    #[must_use]
    pub fn with_context_max(mut self, context_len: usize) -> Self {
        self.context_len = self.context_len.min(context_len);
        self
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
        self.tokenizer.encode_sequence(text).map_err(|error| error.to_string())
    }

    fn encode_chat(&self, messages: &[Message]) -> Result<Vec<TokenId>, String> {
        let template = self.template.as_ref().ok_or("the model has no chat template")?;
        let prompt = template.render(messages).map_err(|error| error.to_string())?;
        self.tokenizer.encode(&prompt).map_err(|error| error.to_string())
    }

    fn end_tokens(&self) -> &[TokenId] {
        &self.end_tokens
    }

    fn detokenizer(&self, prompt: &[TokenId]) -> Result<Box<dyn Detokenize>, String> {
        let tokenizer = Arc::clone(&self.tokenizer);
        let detokenizer = Detokenizer::after(&tokenizer, prompt);
        let detokenizer = detokenizer.map_err(|error| error.to_string())?;
        Ok(Box::new(Incremental { tokenizer, detokenizer }))
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
