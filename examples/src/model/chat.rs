use minijinja::{Environment, ErrorKind, context};

use super::error::{Error, Result};
use super::gguf::{Gguf, Value};
use super::tokenizer::Tokenizer;

/// One message of a conversation.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize)]
pub struct Message {
    /// `system`, `user` or `assistant`.
    pub role: String,
    /// The text.
    pub content: String,
}

/// Turns a conversation into a prompt, by the Jinja template that the model's file carries.
#[derive(Debug)]
pub struct ChatTemplate {
    environment: Environment<'static>,
    bos: String,
    eos: String,
}

impl ChatTemplate {
    pub(super) fn from_gguf(gguf: &Gguf<'_>, tokenizer: &Tokenizer) -> Result<Option<Self>> {
        let Some(source) = gguf.get("tokenizer.chat_template").and_then(Value::as_text) else {
            return Ok(None);
        };
        let mut environment = Environment::new();
        environment.set_trim_blocks(true);
        environment.set_lstrip_blocks(true);
        environment.add_function("raise_exception", |message: String| {
            Err::<String, _>(minijinja::Error::new(ErrorKind::InvalidOperation, message))
        });
        environment.add_template_owned(NAME, source.to_owned()).map_err(template_error)?;
        let text = |token: Option<&str>| token.unwrap_or_default().to_owned();
        let (bos, eos) = (text(tokenizer.bos()), text(tokenizer.eos()));
        Ok(Some(Self { environment, bos, eos }))
    }

    /// Renders `messages` as a prompt for the assistant's next message.
    pub fn render(&self, messages: &[Message]) -> Result<String> {
        let template = self.environment.get_template(NAME).map_err(template_error)?;
        let values = context! {
            messages,
            add_generation_prompt => true,
            bos_token => self.bos,
            eos_token => self.eos,
        };
        template.render(values).map_err(template_error)
    }
}

fn template_error(error: minijinja::Error) -> Error {
    Error::Template(error.to_string())
}

const NAME: &str = "chat";
