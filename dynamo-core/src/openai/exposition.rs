//! The text that Prometheus reads, as far as gauges need it.
//!
//! Format: <https://prometheus.io/docs/instrumenting/exposition_formats/>, version 0.0.4. Written
//! here because what it takes is one line at a time, and no bytes may make it fail: a line that
//! cannot be read is left out.

use std::borrow::Cow;

/// One value of a page.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Sample<'a> {
    pub(super) name: &'a str,
    /// What stands between the braces.
    labels: &'a str,
    pub(super) value: f64,
}

/// Returns the samples of a page, in order.
pub(super) fn samples(page: &str) -> impl Iterator<Item = Sample<'_>> {
    page.lines().filter_map(sample)
}

impl Sample<'_> {
    /// Returns the value of a label, or `None` if there is none of that name.
    pub(super) fn label(&self, name: &str) -> Option<Cow<'_, str>> {
        let mut rest = self.labels;
        loop {
            let (its, behind) = rest.split_once('=')?;
            let quoted = behind.trim_start().strip_prefix('"')?;
            let end = end_of_value(quoted)?;
            if its.trim() == name {
                return Some(unescape(&quoted[..end]));
            }
            rest = quoted[end + 1..].trim_start();
            rest = rest.strip_prefix(',').unwrap_or(rest);
        }
    }
}

/// Reads `name{labels} value timestamp`, of which only name and value must be there.
fn sample(line: &str) -> Option<Sample<'_>> {
    let line = line.trim();
    if line.starts_with('#') {
        return None;
    }
    let end = line.find(|c: char| c == '{' || c.is_whitespace())?;
    let (name, rest) = line.split_at(end);
    let (labels, values) = match rest.strip_prefix('{') {
        Some(inside) => {
            let end = end_of_labels(inside)?;
            (&inside[..end], &inside[end + 1..])
        }
        None => ("", rest),
    };
    let value = values.split_whitespace().next()?.parse().ok()?;
    (!name.is_empty()).then_some(Sample { name, labels, value })
}

/// Returns where the brace is that closes labels: not one in a value.
fn end_of_labels(text: &str) -> Option<usize> {
    let mut from = 0;
    loop {
        let at = from + text[from..].find(['"', '}'])?;
        if text.as_bytes()[at] == b'}' {
            return Some(at);
        }
        from = at + 1;
        from += end_of_value(&text[from..])? + 1;
    }
}

/// Returns where the quote is that ends a value: not one behind a backslash.
fn end_of_value(text: &str) -> Option<usize> {
    let mut is_escaped = false;
    text.bytes().position(|byte| {
        let is_end = byte == b'"' && !is_escaped;
        is_escaped = byte == b'\\' && !is_escaped;
        is_end
    })
}

fn unescape(value: &str) -> Cow<'_, str> {
    if !value.contains('\\') {
        return Cow::Borrowed(value);
    }
    let mut plain = String::with_capacity(value.len());
    let mut characters = value.chars();
    while let Some(character) = characters.next() {
        match (character, character == '\\') {
            (_, true) => match characters.next() {
                Some('n') => plain.push('\n'),
                Some(other) => plain.push(other),
                None => plain.push('\\'),
            },
            (character, false) => plain.push(character),
        }
    }
    Cow::Owned(plain)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn names_labels_and_values_are_read_and_the_rest_is_left_out() {
        let page = "# HELP a What.\n# TYPE a gauge\n\na 1\n b{} 2.5e3 1700000000\n\
                    c{x=\"1\",y=\"a\\\"},\\\\\\n\" , z = \"\"} +Inf\nd{x=\"1\" 4\ne x\n{x=\"1\"} 1\nf\n\
                    g{x} 3\nh -1";
        let read: Vec<_> = samples(page).map(|sample| (sample.name, sample.value)).collect();
        let expected = [("a", 1.0), ("b", 2500.0), ("c", f64::INFINITY), ("g", 3.0), ("h", -1.0)];
        assert_eq!(read, expected);
        let c = samples(page).nth(2).unwrap();
        assert_eq!(c.label("x").unwrap(), "1");
        assert_eq!(c.label("y").unwrap(), "a\"},\\\n");
        assert_eq!(c.label("z").unwrap(), "");
        assert_eq!(c.label("w"), None);
        assert_eq!(samples(page).nth(3).unwrap().label("x"), None);
    }

    fn escape(value: &str) -> String {
        value.replace('\\', "\\\\").replace('"', "\\\"").replace('\n', "\\n")
    }

    proptest! {
        #[test]
        fn whatever_is_written_is_read_back(
            name in "[a-z:_]{1,9}",
            labels in proptest::collection::btree_map("[a-z_]{1,5}", "[ -~\n\u{e4}]{0,9}", 0..4),
            value in -1e9..1e9f64,
        ) {
            let written: Vec<_> = labels
                .iter()
                .map(|(name, value)| format!("{name}=\"{}\"", escape(value)))
                .collect();
            let page = format!("{name}{{{}}} {value}\n", written.join(","));
            let read: Vec<_> = samples(&page).collect();
            prop_assert_eq!(read.len(), 1);
            prop_assert_eq!((read[0].name, read[0].value), (name.as_str(), value));
            for (label, value) in &labels {
                let its = read[0].label(label);
                prop_assert_eq!(its.as_deref(), Some(value.as_str()));
            }
        }

        #[test]
        fn no_text_makes_it_fail(page in "[a-c{}\",\\\\= 0-9\n\u{e4}#.]{0,200}") {
            for sample in samples(&page) {
                sample.label("a");
            }
        }
    }
}
