//! A model's folder: the tokens that its engine would compute, its template, and its text in pieces.
#![expect(clippy::unwrap_used, reason = "helpers of tests fail the test")]

use std::io::Write as _;

use dynamo_examples::model::{Detokenizer, Error, HubFolder, Loaded, Message, Tokenizer};
use dynamo_examples::openai::TextModel;
use dynamo_examples::text::ModelText;
use folder::{BYTES, END, Folder, START};
use serde_json::{Map, Value, json};
use tiny::Size;

#[path = "support/folder.rs"]
mod folder;
#[path = "support/tiny.rs"]
mod tiny;

fn read(folder: &Folder) -> HubFolder {
    HubFolder::read(folder.path()).unwrap()
}

fn bytes(text: &str) -> Vec<u32> {
    text.bytes().map(|byte| BYTES + u32::from(byte)).collect()
}

/// Pushes tokens one by one; returns what each of them brought, and the end.
fn pieces(mut detokenizer: Detokenizer, tokenizer: &Tokenizer, tokens: &[u32]) -> Vec<String> {
    let mut pieces: Vec<_> =
        tokens.iter().map(|token| detokenizer.push(tokenizer, *token).unwrap()).collect();
    pieces.push(detokenizer.finish(tokenizer).unwrap());
    pieces
}

#[test]
fn a_text_has_the_token_that_starts_a_sequence_and_a_chat_what_its_template_says() {
    let folder = read(&Folder::of_bytes());
    assert_eq!((folder.context_len, &folder.end_tokens[..]), (512, &[END][..]));
    let text = ModelText::of_folder("m", folder).with_context_max(100);
    assert_eq!((text.context_len(), text.end_tokens()), (100, &[END][..]));
    let expected = [&[START][..], &bytes("x"), &[BYTES + 256], &bytes("é")].concat();
    assert_eq!(text.encode("xabé").unwrap(), expected);
    let message = Message { role: "u".into(), content: " hi ".into() };
    let expected = [&bytes("<U>hi")[..], &[END], &bytes("<A>")].concat();
    assert_eq!(text.encode_chat(&[message]).unwrap(), expected, "no second start");
}

#[test]
fn pieces_never_split_a_character_and_leave_special_tokens_out() {
    let folder = read(&Folder::of_bytes());
    let text = "Grüße, 世界! 🙂";
    let mut tokens = bytes(text);
    tokens.insert(3, END);
    let all = pieces(Detokenizer::default(), &folder.tokenizer, &tokens);
    assert!(all.iter().all(|piece| !piece.contains(char::REPLACEMENT_CHARACTER)), "{all:?}");
    assert_eq!(all.concat(), text);
    // What is no character, ever, is not waited for.
    let broken = [&[BYTES + 0xff; 40][..], &bytes("ok")].concat();
    let all = pieces(Detokenizer::default(), &folder.tokenizer, &broken);
    assert!(all[..20].iter().any(|piece| !piece.is_empty()) && all.concat().ends_with("ok"));
    // An answer that ends within a character says so at its end, and not before.
    let all = pieces(Detokenizer::default(), &folder.tokenizer, &bytes("né")[..2]);
    assert_eq!(all, ["n", "", "\u{fffd}"]);
}

/// Words begin with a mark for their space, and letters without a token are written as bytes.
fn marked() -> Folder {
    let mut vocab = Map::new();
    vocab.insert("</s>".to_owned(), json!(0));
    for byte in 0..=255u32 {
        vocab.insert(format!("<0x{byte:02X}>"), json!(1 + byte));
    }
    for (id, token) in (257..).zip(["▁", "a", "▁a"]) {
        vocab.insert(token.to_owned(), json!(id));
    }
    let replace = |from: &str, to: &str| json!({ "type": "Replace", "pattern": { "String": from }, "content": to });
    let decoders = [
        replace("▁", " "),
        json!({ "type": "ByteFallback" }),
        json!({ "type": "Fuse" }),
        json!({ "type": "Strip", "content": " ", "start": 1, "stop": 0 }),
    ];
    let normalizers = [json!({ "type": "Prepend", "prepend": "▁" }), replace(" ", "▁")];
    let tokenizer = folder::tokenizer(json!({
        "added_tokens": [folder::special(0, "</s>")],
        "normalizer": { "type": "Sequence", "normalizers": normalizers },
        "decoder": { "type": "Sequence", "decoders": decoders },
        "model": folder::model(vocab, json!(["▁ a"]), true),
    }));
    Folder::of(&[
        ("tokenizer.json", tokenizer.to_string()),
        (
            "config.json",
            json!({ "text_config": { "max_position_embeddings": 64 }, "eos_token_id": 9 })
                .to_string(),
        ),
        ("generation_config.json", json!({ "eos_token_id": [0, 2] }).to_string()),
    ])
}

#[test]
fn words_keep_their_space_behind_a_prompt_and_letters_made_of_bytes_are_whole() {
    let folder = read(&marked());
    assert_eq!((folder.context_len, &folder.end_tokens[..]), (64, &[0, 2][..]));
    assert!(folder.template.is_none());
    let tokenizer = &folder.tokenizer;
    let prompt = tokenizer.encode("a").unwrap();
    assert_eq!(prompt, [259]);
    let letters: Vec<u32> = "世界".bytes().map(|byte| 1 + u32::from(byte)).collect();
    let answer = [&[259][..], &letters, &[0, 259]].concat();
    let behind = Detokenizer::after(tokenizer, &prompt).unwrap();
    let expected = [" a", "", "", "世", "", "", "界", "", " a", ""];
    assert_eq!(pieces(behind, tokenizer, &answer), expected);
    assert_eq!(pieces(Detokenizer::default(), tokenizer, &[259, 259]), ["a", " a", ""]);
}

#[test]
fn what_is_missing_or_broken_is_named() {
    let error = HubFolder::read(Folder::of(&[]).path()).unwrap_err();
    assert!(matches!(&error, Error::Io { .. }) && error.to_string().contains("config.json"));
    let broken = |name: &str, text: &str| {
        let folder = Folder::of_bytes();
        std::fs::write(folder.path().join(name), text).unwrap();
        let error = HubFolder::read(folder.path()).unwrap_err();
        assert!(error.to_string().contains(name), "{name}: {error}");
        error
    };
    for name in ["tokenizer.json", "config.json", "tokenizer_config.json"] {
        for text in ["", "[]", "{"] {
            assert!(matches!(broken(name, text), Error::Malformed { .. }), "{name} {text:?}");
        }
    }
    for config in [json!({}), json!({ "max_position_embeddings": 0 })] {
        assert!(matches!(broken("config.json", &config.to_string()), Error::Malformed { .. }));
    }
    let folder = Folder::of_bytes();
    std::fs::write(folder.path().join("chat_template.jinja"), "{% for %}").unwrap();
    assert!(matches!(HubFolder::read(folder.path()).unwrap_err(), Error::Template(_)));
}

#[test]
fn a_template_may_be_one_of_a_list_and_call_what_python_has() {
    let template = "{% for m in messages %}{% if m.role == 'skip' %}{% continue %}{% endif %}\
        {{ m.get('content').strip().split('-')[1].lower() }}{{ m.items() | length }}{% endfor %}";
    let list = json!([
        { "name": "tool_use", "template": "no" }, { "name": "default", "template": template },
    ]);
    let folder = Folder::of_bytes();
    std::fs::remove_file(folder.path().join("chat_template.jinja")).unwrap();
    let config = json!({ "chat_template": list }).to_string();
    std::fs::write(folder.path().join("tokenizer_config.json"), config).unwrap();
    let message = |role: &str| Message { role: role.into(), content: " x-Yes ".into() };
    let messages = [message("skip"), message("user")];
    let text = read(&folder).template.unwrap().render(&messages).unwrap();
    assert_eq!(text, "yes2");
}

#[test]
fn a_file_and_a_folder_of_one_model_give_the_same_tokens() {
    let size = Size { layers: 1, dim: 32, ffn: 32, context: 64 };
    let file = Loaded::from_bytes(&tiny::file(size).0, &mut |_, _| {}).unwrap();
    let vocab = ["<|end|>", "a", "b", "ab"].into_iter().zip(0..);
    let vocab: Map<String, Value> =
        vocab.map(|(token, id)| (token.to_owned(), json!(id))).collect();
    let bytes = json!({
        "type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": true,
    });
    let tokenizer = folder::tokenizer(json!({
        "added_tokens": [], "pre_tokenizer": bytes, "decoder": bytes,
        "model": folder::model(vocab, json!(["a b"]), false),
    }));
    let config = json!({ "max_position_embeddings": 64 }).to_string();
    let folder = Folder::of(&[("tokenizer.json", tokenizer.to_string()), ("config.json", config)]);
    let folder = read(&folder);
    for text in ["", "a", "abba", "aabbab", "bab".repeat(20).as_str()] {
        let tokens = file.tokenizer.encode(text).unwrap();
        assert_eq!(folder.tokenizer.encode(text).unwrap(), tokens, "{text:?}");
        assert_eq!(folder.tokenizer.decode(&tokens).unwrap(), text);
    }
}

#[test]
#[expect(clippy::disallowed_methods, reason = "tests are told by the environment where models are")]
fn the_real_model_has_the_same_tokens_from_its_file_and_from_its_folder() {
    let paths = (std::env::var_os("DYNAMO_MODEL"), std::env::var_os("DYNAMO_MODEL_DIR"));
    let (Some(file), Some(folder)) = paths else {
        // Past the capture of passing tests' output.
        let skipped =
            "SKIPPED: needs the model in DYNAMO_MODEL and its folder in DYNAMO_MODEL_DIR\n";
        return std::io::stderr().write_all(skipped.as_bytes()).unwrap();
    };
    let file = Loaded::read(file.as_ref(), &mut |_, _| {}).unwrap();
    let folder = HubFolder::read(folder.as_ref()).unwrap();
    for text in [
        "Hello, world!",
        " two  spaces\n\n\ttab",
        "in 1984 and 12345.678, 3rd",
        "Grüße, 世界! 🙂",
        "fn main() { println!(\"{}\", 1 + 2); }",
        "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n",
    ] {
        let tokens = file.tokenizer.encode(text).unwrap();
        assert_eq!(folder.tokenizer.encode(text).unwrap(), tokens, "{text:?}");
        assert_eq!(folder.tokenizer.encode_sequence(text).unwrap(), tokens, "{text:?}");
    }
    let messages = [Message { role: "user".into(), content: "Hi 12".into() }];
    let of_file = file.template.unwrap().render(&messages).unwrap();
    assert_eq!(folder.template.unwrap().render(&messages).unwrap(), of_file);
}
