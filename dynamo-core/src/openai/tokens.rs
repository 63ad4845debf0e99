use std::fmt;
use std::sync::Arc;

use crate::error::Result;
use crate::protocol::TokenId;

/// How the ids of an answer's tokens are had from a server.
#[derive(Clone, Default)]
#[non_exhaustive]
pub enum TokenSource {
    /// `return_token_ids`: each delta has its ids (vLLM, SGLang).
    #[default]
    TokenIds,
    /// `detokenize: false`: ids come in place of text (TensorRT-LLM).
    WithoutText,
    /// `return_tokens_as_token_ids` with log probabilities, whose tokens are called `token_id:N`
    /// (vLLM before it had `return_token_ids`).
    Logprobs,
    /// The server says text alone (llama.cpp): each delta is encoded as it comes.
    ///
    /// The ids need not be those that the model made: a tokeniser that sees pieces cuts them
    /// otherwise. They spell the same text, but a further turn, or a part that another engine goes
    /// on with, may miss the cache from there on.
    Encode(Encode),
}

/// Encodes a piece of text, without special tokens.
pub type Encode = Arc<dyn Fn(&str) -> Result<Vec<TokenId>> + Send + Sync>;

impl fmt::Debug for TokenSource {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::TokenIds => "TokenIds",
            Self::WithoutText => "WithoutText",
            Self::Logprobs => "Logprobs",
            Self::Encode(_) => "Encode",
        })
    }
}
