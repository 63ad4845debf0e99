use minijinja::{Environment, ErrorKind, State, context, value as jinja};

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

/// Turns a conversation into a prompt, by the Jinja template that comes with the model.
#[derive(Debug)]
pub struct ChatTemplate {
    environment: Environment<'static>,
    bos: String,
    eos: String,
}

impl ChatTemplate {
    pub(super) fn from_gguf(gguf: &Gguf<'_>, tokenizer: &Tokenizer) -> Result<Option<Self>> {
        let source = gguf.get("tokenizer.chat_template").and_then(Value::as_text);
        source.map(|source| Self::new(source.to_owned(), tokenizer)).transpose()
    }

    /// Reads a template; blocks take their line's end with them, as those who write templates expect.
    pub(super) fn new(source: String, tokenizer: &Tokenizer) -> Result<Self> {
        let mut environment = Environment::new();
        environment.set_trim_blocks(true);
        environment.set_lstrip_blocks(true);
        environment.add_function("raise_exception", |message: String| {
            Err::<String, _>(minijinja::Error::new(ErrorKind::InvalidOperation, message))
        });
        environment.set_unknown_method_callback(|state, value, name, args| {
            python_method(state, value, name, args).unwrap_or_else(|| {
                Err(minijinja::Error::new(ErrorKind::UnknownMethod, name.to_owned()))
            })
        });
        environment.add_template_owned(NAME, source).map_err(template_error)?;
        let text = |token: Option<&str>| token.unwrap_or_default().to_owned();
        let (bos, eos) = (text(tokenizer.bos()), text(tokenizer.eos()));
        Ok(Self { environment, bos, eos })
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

/// The methods of Python that templates call on what they are given; `None` if it is another one.
fn python_method(
    state: &State<'_, '_>,
    value: &jinja::Value,
    name: &str,
    args: &[jinja::Value],
) -> Option<Result<jinja::Value, minijinja::Error>> {
    let first = args.first().and_then(jinja::Value::as_str);
    let Some(text) = value.as_str() else {
        return match (name, args) {
            ("items", []) => Some(state.apply_filter("items", std::slice::from_ref(value))),
            ("get", [key]) => Some(value.get_item(key)),
            _ => None,
        };
    };
    let among = |letter: char| match first {
        Some(letters) => letters.contains(letter),
        None => letter.is_whitespace(),
    };
    Some(Ok(match (name, first) {
        ("strip", _) => text.trim_matches(among).into(),
        ("lstrip", _) => text.trim_start_matches(among).into(),
        ("rstrip", _) => text.trim_end_matches(among).into(),
        ("upper", None) => text.to_uppercase().into(),
        ("lower", None) => text.to_lowercase().into(),
        ("startswith", Some(part)) => text.starts_with(part).into(),
        ("endswith", Some(part)) => text.ends_with(part).into(),
        ("split", Some(part)) if !part.is_empty() && args.len() == 1 => {
            text.split(part).map(jinja::Value::from).collect()
        }
        _ => return None,
    }))
}

fn template_error(error: minijinja::Error) -> Error {
    Error::Template(error.to_string())
}

const NAME: &str = "chat";
