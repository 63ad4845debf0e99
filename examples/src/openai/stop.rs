/// Finds stop texts in an answer that arrives in pieces; they are never emitted, not even in part.
#[derive(Debug)]
pub(super) struct StopTexts {
    stops: Vec<String>,
    held: String,
}

/// What a piece of text leads to.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Found {
    /// This much is certain to come before any stop text.
    Text(String),
    /// This much came before a stop text: the answer is over.
    Stop(String),
}

impl StopTexts {
    pub(super) fn new(stops: Vec<String>) -> Self {
        Self { stops, held: String::new() }
    }

    /// Adds a piece of text.
    pub(super) fn push(&mut self, text: &str) -> Found {
        self.held.push_str(text);
        let found = self.stops.iter().filter_map(|stop| self.held.find(stop.as_str())).min();
        if let Some(at) = found {
            self.held.truncate(at);
            return Found::Stop(std::mem::take(&mut self.held));
        }
        let kept = self.stops.iter().map(|stop| overlap(&self.held, stop)).max().unwrap_or(0);
        let rest = self.held.split_off(self.held.len() - kept);
        Found::Text(std::mem::replace(&mut self.held, rest))
    }

    /// Returns what was held back: the answer is over without a stop text.
    pub(super) fn finish(&mut self) -> String {
        std::mem::take(&mut self.held)
    }
}

/// Returns the length of the longest end of `text` that `stop` starts with.
fn overlap(text: &str, stop: &str) -> usize {
    let starts = stop.char_indices().map(|(at, _)| at).rev();
    starts.into_iter().find(|&len| text.ends_with(&stop[..len])).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn stops(texts: &[&str]) -> StopTexts {
        StopTexts::new(texts.iter().map(|text| (*text).to_owned()).collect())
    }

    #[test]
    fn a_stop_text_is_found_across_pieces_and_never_emitted() {
        let mut stop = stops(&["END", "\n\n"]);
        assert_eq!(stop.push("one E"), Found::Text("one ".into()));
        assert_eq!(stop.push("N"), Found::Text(String::new()));
        assert_eq!(stop.push("T\n"), Found::Text("ENT".into()));
        assert_eq!(stop.push("\nmore"), Found::Stop(String::new()));
    }

    #[test]
    fn what_only_looked_like_a_stop_text_comes_out_at_the_end() {
        let mut stop = stops(&["schön"]);
        assert_eq!(stop.push("sehr sch"), Found::Text("sehr ".into()));
        assert_eq!(stop.finish(), "sch");
        assert_eq!(stops(&[]).push("all"), Found::Text("all".into()));
    }
}
