//! The real model: the tokenizer's round trip, prompts cut in any way, and broken files.
#![expect(clippy::unwrap_used, reason = "helpers of tests fail the test")]

use std::io::Write as _;
use std::path::PathBuf;
use std::sync::OnceLock;

use dynamo_examples::model::{Detokenizer, Error, Loaded, Message, VecKv, sample};
use tiny::{Size, header};

#[path = "support/tiny.rs"]
mod tiny;

/// A whole model in a few kilobytes.
const TINY: Size = Size { layers: 1, dim: 32, ffn: 32, context: 64 };

/// Returns the model's file, or says visibly how to get it.
#[expect(
    clippy::disallowed_methods,
    reason = "tests are told by the environment where the model is"
)]
fn model_path() -> Option<PathBuf> {
    let path = std::env::var_os("DYNAMO_MODEL").map(PathBuf::from);
    if path.is_none() {
        // Past the capture of passing tests' output.
        let skipped =
            "SKIPPED: needs the model; `cargo xtask test` fetches it, sets DYNAMO_MODEL\n";
        std::io::stderr().write_all(skipped.as_bytes()).unwrap();
    }
    path
}

fn model() -> Option<&'static Loaded> {
    static MODEL: OnceLock<Option<Loaded>> = OnceLock::new();
    let load = || model_path().map(|path| Loaded::read(&path, &mut |_, _| {}).unwrap());
    MODEL.get_or_init(load).as_ref()
}

const TEXT: &str = "The library opens at 10 in the morning, and the lighthouse keeper brings \
    her cat. She counts 1, 2, 3 ships at sea; two of them carry apples, the third one salt.";

#[test]
fn text_survives_the_way_through_tokens_one_by_one() {
    let Some(Loaded { tokenizer, .. }) = model() else { return };
    let text = "Grüße, 世界! 🙂 1234";
    let tokens = tokenizer.encode(text).unwrap();
    assert_eq!(tokenizer.decode(&tokens).unwrap(), text);
    let mut detokenizer = Detokenizer::default();
    let mut deltas = String::new();
    for token in tokens {
        let delta = detokenizer.push(tokenizer, token).unwrap();
        assert!(!delta.contains(char::REPLACEMENT_CHARACTER));
        deltas.push_str(&delta);
    }
    deltas.push_str(&detokenizer.finish(tokenizer).unwrap());
    assert_eq!(deltas, text);
    assert!(tokenizer.encode("1234").unwrap().len() >= 4, "digits are tokens of their own");
}

#[test]
fn the_chat_template_marks_roles_with_special_tokens() {
    let Some(Loaded { tokenizer, template, .. }) = model() else { return };
    let message = Message { role: "user".into(), content: "Hi".into() };
    let prompt = template.as_ref().unwrap().render(&[message]).unwrap();
    assert!(prompt.contains("<|im_start|>user\nHi<|im_end|>\n"), "{prompt:?}");
    assert!(prompt.ends_with("<|im_start|>assistant\n"), "{prompt:?}");
    assert_eq!(tokenizer.encode("<|im_end|>").unwrap().len(), 1);
}

#[test]
fn logits_do_not_depend_on_how_the_prompt_is_cut() {
    let Some(Loaded { model, tokenizer, .. }) = model() else { return };
    let tokens = tokenizer.encode(TEXT).unwrap();
    let run = |chunk: usize, block_tokens: usize| {
        let mut kv = VecKv::new(model.config(), block_tokens, tokens.len());
        let mut logits = Vec::new();
        for (index, part) in tokens.chunks(chunk).enumerate() {
            logits = model.forward(part, index * chunk, &mut kv).unwrap();
        }
        logits
    };
    let whole = run(tokens.len(), 16);
    for (chunk, block_tokens) in [(1, 16), (7, 16), (16, 32), (33, 5)] {
        assert!(run(chunk, block_tokens) == whole, "chunks of {chunk}, blocks of {block_tokens}");
    }
}

#[test]
fn the_model_knows_the_capital_of_france_and_how_to_count() {
    let Some(Loaded { model, tokenizer, .. }) = model() else { return };
    for (prompt, expected) in [("The capital of France is", " Paris"), ("1 2 3 4 5 6", " 7 8 9 1")]
    {
        let mut tokens = tokenizer.encode(prompt).unwrap();
        let prompt_len = tokens.len();
        let mut kv = VecKv::new(model.config(), 16, prompt_len + 16);
        let mut logits = model.forward(&tokens, 0, &mut kv).unwrap();
        for _ in 0..8 {
            let token = sample(&logits, 0.0, 1.0, 0, 0);
            tokens.push(token);
            logits = model.forward(&[token], tokens.len() - 1, &mut kv).unwrap();
        }
        let text = tokenizer.decode(&tokens[prompt_len..]).unwrap();
        assert!(text.starts_with(expected), "{prompt:?} goes on {text:?}");
    }
}

#[test]
fn positions_and_tokens_outside_the_model_are_refused() {
    let Some(Loaded { model, .. }) = model() else { return };
    let mut kv = VecKv::new(model.config(), 16, 16);
    let context = model.config().context;
    let vocab = u32::try_from(model.config().vocab).unwrap();
    for (tokens, start) in [(&[][..], 0), (&[1][..], context), (&[vocab][..], 0)] {
        let error = model.forward(tokens, start, &mut kv).unwrap_err();
        assert!(matches!(error, Error::InvalidRequest(_)), "{error}");
    }
}

fn load(bytes: &[u8]) -> Error {
    Loaded::from_bytes(bytes, &mut |_, _| {}).unwrap_err()
}

#[test]
fn other_files_and_absurd_counts_are_typed_errors() {
    assert!(matches!(load(b""), Error::NotGguf(_)));
    assert!(matches!(load(b"PK\x03\x04 a zip"), Error::NotGguf(_)));
    assert!(matches!(load(b"GGUF\x03\0"), Error::Truncated(_)));
    assert!(matches!(load(b"GGUF\x09\0\0\0"), Error::Unsupported(_)));
    assert!(matches!(load(&header(u64::MAX, 0, &[])), Error::Corrupt(_)));
    assert!(matches!(load(&header(0, 1 << 60, &[])), Error::Corrupt(_)));
    let long_key = (1u64 << 40).to_le_bytes();
    assert!(matches!(load(&header(0, 1, &[&long_key[..], &[0; 8]].concat())), Error::Corrupt(_)));
    assert!(matches!(load(&header(0, 0, &[0; 32])), Error::Missing(_)));
}

#[test]
fn a_real_file_cut_or_spoilt_anywhere_in_its_header_is_a_typed_error() {
    let Some(path) = model_path() else { return };
    let file = std::fs::read(path).unwrap();
    for cut in [4, 5, 23, 24, 100, 10_000, 1 << 20, file.len() / 2, file.len() - 1] {
        let error = load(&file[..cut]);
        assert!(matches!(error, Error::Truncated(_) | Error::Corrupt(_)), "cut at {cut}: {error}");
    }
    // Whatever a flipped bit makes of the header, reading it ends, and without a panic.
    for at in (0..2000).step_by(37) {
        let mut spoilt = file[..1 << 20].to_vec();
        spoilt[at] ^= 0x80;
        let _ = load(&spoilt);
    }
}

#[test]
fn a_file_loads_and_runs_wherever_its_bytes_lie_in_memory() {
    let (file, _) = tiny::file(TINY);
    let run = |bytes: &[u8]| {
        let Loaded { model, tokenizer, .. } = Loaded::from_bytes(bytes, &mut |_, _| {}).unwrap();
        let mut kv = VecKv::new(model.config(), 2, 8);
        model.forward(&tokenizer.encode("abaabb").unwrap(), 0, &mut kv).unwrap()
    };
    let logits = run(&file);
    assert!(logits.len() == 4 && logits.iter().all(|logit| logit.is_finite()), "{logits:?}");
    for shift in 1..8 {
        let shifted = [&vec![0; shift][..], &file].concat();
        assert!(run(&shifted[shift..]) == logits, "{shift} bytes further on");
    }
}

#[test]
fn no_spoilt_byte_and_no_cut_of_a_file_makes_loading_panic() {
    let (file, data_start) = tiny::file(TINY);
    for at in 0..data_start {
        for flip in [0x01, 0x04, 0x80, 0xff] {
            let mut spoilt = file.clone();
            spoilt[at] ^= flip;
            // Many changes leave a file that still holds together: it loads, or says what is wrong.
            let error = Loaded::from_bytes(&spoilt, &mut |_, _| {}).err();
            assert!(error.is_none_or(|error| !error.to_string().is_empty()), "byte {at}");
        }
    }
    for cut in 4..file.len() {
        let error = load(&file[..cut]);
        assert!(matches!(error, Error::Truncated(_) | Error::Corrupt(_)), "cut at {cut}: {error}");
    }
}

#[test]
fn what_would_be_read_wrongly_is_refused() {
    let (file, _) = tiny::file(TINY);
    let replaced = |from: &[u8], to: &[u8]| {
        let at = file.windows(from.len()).position(|window| window == from).unwrap();
        let mut changed = file.clone();
        changed[at..at + from.len()].copy_from_slice(to);
        load(&changed)
    };
    assert!(matches!(replaced(b"smollm", b"llama3"), Error::Unsupported(_)));
    assert!(matches!(
        replaced(b"general.architecture", b"general.architectura"),
        Error::Missing(_)
    ));
    let name = b"blk.0.ffn_down.weight";
    let at = file.windows(name.len()).position(|window| window == name).unwrap();
    // After the name: the number of axes, two axes, the type.
    let mut moved = file.clone();
    moved[at + name.len() + 4 + 16 + 4] |= 1;
    assert!(matches!(load(&moved), Error::Corrupt(_)));
}
