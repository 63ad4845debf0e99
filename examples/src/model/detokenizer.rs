use super::error::Result;
use super::tokenizer::Tokenizer;

/// Turns the tokens of an answer into text one by one, never splitting a character.
///
/// What it says is what decoding all tokens at once would say, special tokens left out. It decodes
/// a window: the tokens whose text it told last, which give the next ones their context (a word may
/// begin with a space or not by what stands before it), and those whose text is not certain yet.
#[derive(Debug, Default)]
pub struct Detokenizer {
    window: Vec<u32>,
    /// How many tokens of the window are told, and how many bytes of its text that is.
    told_tokens: usize,
    told_bytes: usize,
}

impl Detokenizer {
    /// Goes on behind `prompt`, so that a first word that begins with a space keeps it.
    pub fn after(tokenizer: &Tokenizer, prompt: &[u32]) -> Result<Self> {
        let words = prompt.iter().rev().filter(|token| !tokenizer.is_special(**token));
        let mut window: Vec<_> = words.take(CONTEXT_TOKENS).copied().collect();
        window.reverse();
        let text = tokenizer.decode(&window)?;
        if text.ends_with(char::REPLACEMENT_CHARACTER) {
            // The window, or the prompt, cuts a character: better none than a wrong one.
            return Ok(Self::default());
        }
        Ok(Self { told_tokens: window.len(), told_bytes: text.len(), window })
    }

    /// Adds a token and returns the text that is certain by it.
    pub fn push(&mut self, tokenizer: &Tokenizer, token: u32) -> Result<String> {
        if tokenizer.is_special(token) {
            return Ok(String::new());
        }
        self.window.push(token);
        let text = tokenizer.decode(&self.window)?;
        let held = self.window.len() - self.told_tokens;
        if text.ends_with(char::REPLACEMENT_CHARACTER) && held < HELD_TOKENS_MAX {
            // Bytes of a character that is not complete yet.
            return Ok(String::new());
        }
        let delta = self.untold(&text);
        self.window.drain(..self.told_tokens);
        self.told_tokens = self.window.len();
        self.told_bytes = tokenizer.decode(&self.window)?.len();
        Ok(delta)
    }

    /// Returns what was held back.
    pub fn finish(&mut self, tokenizer: &Tokenizer) -> Result<String> {
        let text = tokenizer.decode(&self.window)?;
        let delta = self.untold(&text);
        (self.told_tokens, self.told_bytes) = (self.window.len(), text.len());
        Ok(delta)
    }

    fn untold(&self, text: &str) -> String {
        text.get(self.told_bytes..).unwrap_or_default().to_owned()
    }
}

/// Whether a word begins with a space is told by the token before it.
const CONTEXT_TOKENS: usize = 4;

/// Four tokens make any character; what is none after as many as this never becomes one.
const HELD_TOKENS_MAX: usize = 8;
