//! What may be asked for only as far as it asks for nothing.

use std::fmt;

use serde_json::{Value, json};

/// The values of a field that change nothing: `null`, and what the variant says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Neutral {
    /// `null` alone.
    Absent,
    False,
    True,
    Zero,
    One,
    /// All tokens may be sampled.
    Unlimited,
    Empty,
    /// A format, or none.
    Text,
}

impl Neutral {
    /// Tells whether `value` asks for nothing beyond what happens without it.
    pub(super) fn is(self, value: &Value) -> bool {
        let is_number = |number: f64| value.as_f64() == Some(number);
        value.is_null()
            || match self {
                Self::Absent => false,
                Self::False => *value == json!(false),
                Self::True => *value == json!(true),
                Self::Zero => is_number(0.0),
                Self::One => is_number(1.0),
                Self::Unlimited => is_number(-1.0) || is_number(0.0),
                Self::Empty => {
                    let (list, object) = (value.as_array(), value.as_object());
                    list.is_some_and(Vec::is_empty)
                        || object.is_some_and(serde_json::Map::is_empty)
                        || value.as_str() == Some("")
                        || *value == json!(false)
                }
                Self::Text => value["type"] == "text",
            }
    }
}

/// Says what a value that is not neutral should be.
impl fmt::Display for Neutral {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Absent => "is not supported",
            Self::False => "is not supported: it must be false",
            Self::True => "is not supported: it must be true",
            Self::Zero => "is not supported: it must be 0",
            Self::One => "is not supported: it must be 1",
            Self::Unlimited => "is not supported: it must be -1 or 0",
            Self::Empty => "is not supported: it must be empty",
            Self::Text => "is not supported: its type must be text",
        })
    }
}

/// What clients and load generators send, OpenAI's fields and vLLM's, and is not done here. What is in
/// no list changes no answer (`user`, `metadata`) and is not looked at.
pub(super) const NEUTRAL: [(&str, Neutral); 33] = [
    ("n", Neutral::One),
    ("best_of", Neutral::One),
    ("tools", Neutral::Empty),
    ("functions", Neutral::Empty),
    ("logprobs", Neutral::False),
    ("top_logprobs", Neutral::Zero),
    ("prompt_logprobs", Neutral::Absent),
    ("echo", Neutral::False),
    ("suffix", Neutral::Empty),
    ("response_format", Neutral::Text),
    ("structured_outputs", Neutral::Empty),
    ("guided_json", Neutral::Empty),
    ("guided_regex", Neutral::Empty),
    ("guided_choice", Neutral::Empty),
    ("guided_grammar", Neutral::Empty),
    ("logit_bias", Neutral::Empty),
    ("allowed_token_ids", Neutral::Empty),
    ("bad_words", Neutral::Empty),
    ("logits_processors", Neutral::Empty),
    ("presence_penalty", Neutral::Zero),
    ("frequency_penalty", Neutral::Zero),
    ("repetition_penalty", Neutral::One),
    ("top_k", Neutral::Unlimited),
    ("min_p", Neutral::Zero),
    ("use_beam_search", Neutral::False),
    ("truncate_prompt_tokens", Neutral::Absent),
    ("skip_special_tokens", Neutral::True),
    ("include_stop_str_in_output", Neutral::False),
    ("add_special_tokens", Neutral::Absent),
    ("add_generation_prompt", Neutral::True),
    ("continue_final_message", Neutral::False),
    ("chat_template", Neutral::Absent),
    ("chat_template_kwargs", Neutral::Empty),
];
