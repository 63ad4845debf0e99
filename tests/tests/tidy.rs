//! The structure of the repository, checked: who may depend on whom, what a library may not do.
#![expect(clippy::unwrap_used, reason = "helpers of tests fail the test")]

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

const LIBRARIES: [&str; 4] = ["dynamo-core", "dynamo-router", "dynamo-kv", "dynamo-transfer"];

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap().to_owned()
}

/// Returns all Rust files below `folder`.
fn sources(folder: &Path) -> Vec<PathBuf> {
    let mut files = Vec::new();
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            files.extend(sources(&path));
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            files.push(path);
        }
    }
    files
}

/// Returns `file:line: text` for each line of the libraries' code (comments, and everything from
/// an inline test module on, left out) that contains one of `words`.
fn lines_with(words: &[&str]) -> Vec<String> {
    let mut found = Vec::new();
    for library in LIBRARIES {
        for file in sources(&root().join(library).join("src")) {
            let is_test = file.components().any(|part| {
                let name = part.as_os_str();
                name == "tests" || name == "tests.rs"
            });
            if is_test {
                continue;
            }
            let text = fs::read_to_string(&file).unwrap();
            let code = text.split("\n#[cfg(test)]").next().unwrap();
            for (number, line) in code.lines().enumerate() {
                let line = line.trim();
                if !line.starts_with("//") && words.iter().any(|word| line.contains(word)) {
                    let file = file.strip_prefix(root()).unwrap().display();
                    found.push(format!("{file}:{}: {line}", number + 1));
                }
            }
        }
    }
    found
}

#[test]
fn no_library_reads_the_environment_or_keeps_a_static() {
    let words = ["env::var", "static mut ", "lazy_static", "LazyLock", "thread_local!"];
    let mut found = lines_with(&words);
    // `RuntimeConfig::from_env` does what its name says.
    found.retain(|line| !line.contains("config/source.rs") || !line.contains("env::vars_os()"));
    assert_eq!(found, [""; 0]);
    let statics: Vec<_> = lines_with(&["static "])
        .into_iter()
        .filter(|line| {
            let code = line.split_once(": ").unwrap().1;
            let before = code.split_once("static ").unwrap().0.trim();
            before.is_empty()
                || before == "pub"
                || (before.starts_with("pub(") && before.ends_with(')'))
        })
        .collect();
    assert_eq!(statics, [""; 0]);
}

#[test]
fn no_library_spawns_a_task_without_an_owner_or_queues_without_a_limit() {
    let words = [
        "tokio::spawn(",
        "task::spawn(",
        "task::spawn_blocking(",
        "Handle::current().spawn",
        "thread::spawn(",
        "thread::Builder",
        "unbounded",
    ];
    let mut found = lines_with(&words);
    // Threads of their own, which the `shutdown` of whoever starts them joins.
    let with_threads = [
        "discovery/etcd/mod.rs",
        "backend/cuda/quarantine.rs",
        "backend/cuda/software.rs",
        "backend/file/threads.rs",
        "backend/ucx/mod.rs",
    ];
    found.retain(|line| !with_threads.iter().any(|file| line.contains(file)));
    assert_eq!(found, [""; 0]);
}

#[test]
fn no_library_ends_the_process_or_installs_a_subscriber_or_a_signal_handler() {
    let words = ["process::exit", "process::abort", "set_global_default", "tokio::signal"];
    assert_eq!(lines_with(&words), [""; 0]);
}

#[test]
fn no_library_uses_anyhow_and_arrows_point_down_only() {
    let may_use: [(&str, &[&str]); 4] = [
        ("dynamo-core", &[]),
        ("dynamo-transfer", &[]),
        ("dynamo-kv", &["dynamo-core", "dynamo-transfer"]),
        ("dynamo-router", &["dynamo-core"]),
    ];
    for (library, allowed) in may_use {
        let manifest = fs::read_to_string(root().join(library).join("Cargo.toml")).unwrap();
        let dependencies = manifest.split("[dependencies]").nth(1).unwrap();
        let dependencies = dependencies.split("\n[").next().unwrap();
        for line in dependencies.lines().filter(|line| !line.trim().is_empty()) {
            let name = line.split(['.', ' ', '=']).next().unwrap();
            assert_ne!(name, "anyhow", "{library}");
            assert!(
                !name.starts_with("dynamo-") || allowed.contains(&name),
                "{library} must not depend on {name}"
            );
        }
    }
}

/// Floors of a library, the lowest first: a room uses rooms of lower floors, or of its own.
type Floors = &'static [&'static [&'static str]];

const CORE: Floors = &[
    &["error", "metrics", "name", "random", "time"],
    &["protocol"],
    &["nats", "wire"],
    &["engine", "event_plane"],
    &["discovery", "readiness"],
    &["request_plane"],
    &["runtime"],
    &["client", "config", "openai", "server", "status"],
    &["component", "testing"],
];

/// The engines of files and devices are rooms of their own: memory is made of what they reach.
const TRANSFER: Floors = &[
    &["error", "notify", "vocabulary"],
    &["cuda", "descriptor", "file", "memory", "peer", "wire"],
    &["plan"],
    &["backend", "inbound"],
    &["config"],
    &["transfer"],
    &["agent"],
];

#[test]
fn the_floors_of_core_and_transfer_hold() {
    assert_eq!(pointing_up("dynamo-core", CORE), [""; 0]);
    assert_eq!(pointing_up("dynamo-transfer", TRANSFER), [""; 0]);
    assert_eq!(
        rooms_used(
            "use crate::a::B;\nuse crate::{c::{D, E}, f};\n// crate::g\nlet x = crate::h();"
        ),
        ["a", "c", "f", "h"]
    );
    assert_eq!(
        rooms_used("use crate::backend::file::A;\nuse crate::backend::B;"),
        ["file", "backend"]
    );
}

/// Returns what of a library uses a room of a higher floor, or one of no floor.
fn pointing_up(library: &str, floors: Floors) -> Vec<String> {
    let floor = |room: &str| floors.iter().position(|floor| floor.contains(&room));
    let source = root().join(library).join("src");
    let mut found = Vec::new();
    for file in sources(&source) {
        let inside = file.strip_prefix(&source).unwrap();
        let parts: Vec<_> = inside.iter().map(|part| part.to_str().unwrap()).collect();
        let room = match parts[..] {
            // Suites go the whole way through the rooms, and so do tests.
            [.., "conformance.rs" | "fuzz.rs" | "hostile.rs" | "lib.rs" | "tests.rs"] => continue,
            [.., "conformance" | "tests", _] => continue,
            ["backend", engine @ ("cuda" | "file"), ..] => engine,
            [room, ..] => room.trim_end_matches(".rs"),
            [] => unreachable!("a file has a name"),
        };
        let own = floor(room);
        for used in rooms_used(&fs::read_to_string(&file).unwrap()) {
            if own.is_none() || floor(&used).is_none_or(|its| Some(its) > own) {
                found.push(format!("{}: crate::{used}", file.display()));
            }
        }
    }
    found
}

/// Returns what the code of a file names right behind `crate::`; tests and comments left out.
fn rooms_used(text: &str) -> Vec<String> {
    let code = text.split("\n#[cfg(test)]").next().unwrap();
    let code: String =
        code.lines().filter(|line| !line.trim().starts_with("//")).collect::<Vec<_>>().join("\n");
    let mut used = Vec::new();
    // Engines are rooms.
    let code = code.replace("crate::backend::cuda", "crate::cuda");
    let code = code.replace("crate::backend::file", "crate::file");
    for rest in code.split("crate::").skip(1) {
        let Some(list) = rest.strip_prefix('{') else {
            used.push(word(rest));
            continue;
        };
        // The names on the first level of the braces.
        let mut depth = 0;
        let mut is_next = true;
        for (at, character) in list.char_indices() {
            match character {
                '{' => depth += 1,
                '}' if depth == 0 => break,
                '}' => depth -= 1,
                ',' if depth == 0 => is_next = true,
                character if is_next && !character.is_whitespace() => {
                    used.push(word(&list[at..]));
                    is_next = false;
                }
                _ => {}
            }
        }
    }
    used
}

fn word(text: &str) -> String {
    text.chars().take_while(|c| c.is_alphanumeric() || *c == '_').collect()
}

#[test]
fn kv_never_sees_a_socket() {
    for file in sources(&root().join("dynamo-kv/src")) {
        let text = fs::read_to_string(&file).unwrap();
        assert!(!text.contains("::net::"), "{} sees a socket", file.display());
    }
}

#[test]
fn unsafe_code_is_forbidden_where_it_is_promised() {
    for library in LIBRARIES.iter().filter(|library| **library != "dynamo-transfer") {
        let text = fs::read_to_string(root().join(library).join("src/lib.rs")).unwrap();
        assert!(text.contains("#![forbid(unsafe_code)]"), "{library}");
    }
    // There it is denied, save in files that say why.
    let transfer = root().join("dynamo-transfer/src");
    for file in sources(&transfer) {
        let text = fs::read_to_string(&file).unwrap();
        let place = file.strip_prefix(&transfer).unwrap();
        let is_low = ["memory", "backend"].iter().any(|room| place.starts_with(room));
        assert!(is_low || !text.contains("unsafe "), "{}", place.display());
        assert!(!text.contains("allow(unsafe_code"), "{}", place.display());
    }
}

#[test]
fn every_source_file_is_part_of_a_module_tree() {
    for library in LIBRARIES {
        let folder = root().join(library).join("src");
        for file in sources(&folder) {
            let stem = file.file_stem().unwrap().to_str().unwrap();
            let parent = file.parent().unwrap();
            let (name, declared_in) = match stem {
                "lib" => continue,
                "mod" => (parent.file_name().unwrap().to_str().unwrap(), parent.parent().unwrap()),
                stem => (stem, parent),
            };
            let declares = |path: PathBuf| {
                fs::read_to_string(path).is_ok_and(|text| {
                    text.lines().any(|line| line.trim_end().ends_with(&format!("mod {name};")))
                })
            };
            let candidates = [
                declared_in.join("lib.rs"),
                declared_in.join("mod.rs"),
                declared_in.with_extension("rs"),
            ];
            assert!(candidates.into_iter().any(declares), "{} is dead", file.display());
        }
    }
}

/// What whoever embeds core has to trust and to build; what tests need is not counted.
#[test]
fn core_is_built_of_at_most_60_crates_and_with_etcd_and_nats_of_240() {
    let alone = crates_of_core(&[]);
    assert!((20..=60).contains(&alone), "{alone} crates");
    let with_both = crates_of_core(&["--features", "etcd,nats"]);
    assert!((alone + 1..=240).contains(&with_both), "{with_both} crates with etcd and nats");
}

fn crates_of_core(features: &[&str]) -> usize {
    let output = Command::new(env!("CARGO"))
        .current_dir(root())
        .args(["tree", "--package", "dynamo-core", "--edges", "normal", "--prefix", "none"])
        .args(["--format", "{p}", "--locked", "--offline"])
        .args(features)
        .output()
        .unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let listed = String::from_utf8(output.stdout).unwrap();
    // One that is listed again is marked.
    listed.lines().map(|line| line.trim_end_matches(" (*)")).collect::<BTreeSet<_>>().len()
}

#[test]
fn nothing_is_left_open() {
    let words = [concat!("TO", "DO"), concat!("FIX", "ME"), "todo!(", "unimplemented!("];
    assert_eq!(lines_with(&words), [""; 0]);
}
