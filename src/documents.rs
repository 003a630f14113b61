//! Tests that the documents name what there is: keys, metrics, verbs, and the lints that every room repeats.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

use clap::CommandFactory;

use crate::cli::Arguments;
use crate::config::{self, Config, KEYS};

/// The rooms, and the folders of their sources.
const ROOMS: [&str; 4] = ["events", "runtime", "actors", "web"];

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

fn read(path: impl AsRef<Path>) -> String {
    let path = root().join(path);
    fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

fn sources(folder: &Path, found: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(folder).expect("a folder of sources") {
        let path = entry.expect("an entry").path();
        if path.is_dir() {
            sources(&path, found);
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            found.push(path);
        }
    }
}

/// What stands between the backquotes that begin each row of a table.
fn rows(text: &str) -> BTreeSet<&str> {
    text.lines().filter_map(|line| line.strip_prefix("| `")?.split('`').next()).collect()
}

#[test]
fn every_key_is_in_the_operations_guide_and_nothing_else_looks_like_one() {
    let text = read("docs/operations.md");
    let section = text.split("## Configuration").nth(1).and_then(|rest| rest.split("\n## ").next()).expect("a section");
    assert_eq!(rows(section), KEYS.iter().copied().collect());
}

#[test]
fn the_example_is_the_defaults_and_shows_every_key() {
    let example = include_str!("../orchestra.example.toml");
    let folder = tempfile::tempdir().expect("a folder");
    let load = |name: &str, text: &str| {
        let file = folder.path().join(name);
        fs::write(&file, text).expect("written");
        config::load(Some(&file), std::iter::empty(), Vec::new())
            .unwrap_or_else(|error| panic!("{name}: {error:#}"))
            .config
    };
    let as_json = |config: &Config| serde_json::to_value(config).expect("serialises");
    assert_eq!(as_json(&load("as it is", example)), as_json(&Config::default()));

    // With what is commented out it still loads, and then no key is absent.
    let commented = |line: &str| {
        line.starts_with("# [")
            || line.split_once(" = ").is_some_and(|(key, _)| {
                key.strip_prefix("# ")
                    .is_some_and(|key| key.bytes().all(|byte| byte.is_ascii_lowercase() || byte == b'_'))
            })
    };
    let whole: Vec<_> =
        example.lines().map(|line| if commented(line) { line.trim_start_matches("# ") } else { line }).collect();
    let whole = as_json(&load("whole", &whole.join("\n")));
    for key in KEYS {
        assert!(has(&whole, &key.split('.').collect::<Vec<_>>()), "orchestra.example.toml does not show {key}");
    }
}

fn has(value: &serde_json::Value, path: &[&str]) -> bool {
    match path {
        [] => !value.is_null(),
        ["*", rest @ ..] => value.as_object().is_some_and(|names| names.values().any(|inner| has(inner, rest))),
        [name, rest @ ..] => value.get(name).is_some_and(|inner| has(inner, rest)),
    }
}

#[test]
fn every_metric_is_in_the_operations_guide_and_every_one_there_exists() {
    let mut files = Vec::new();
    for room in ROOMS {
        sources(&root().join(room).join("src"), &mut files);
    }
    sources(&root().join("src"), &mut files);
    let mut named = BTreeSet::new();
    for file in files {
        let text = fs::read_to_string(&file).expect("UTF-8");
        for kind in ["counter!(", "gauge!(", "histogram!("] {
            let after =
                text.split(kind).skip(1).filter_map(|rest| rest.trim_start().strip_prefix('"')?.split('"').next());
            // This file has the words too, followed by anything but a name.
            let is_name =
                |name: &&str| name.len() > 2 && name.bytes().all(|byte| byte == b'_' || byte.is_ascii_lowercase());
            named.extend(after.filter(is_name).map(str::to_owned));
        }
    }
    assert!(named.len() > 5, "the search finds no metrics any more: {named:?}");
    let text = read("docs/operations.md");
    let documented: BTreeSet<_> =
        rows(&text).into_iter().filter(|name| name.starts_with("orchestra_")).map(str::to_owned).collect();
    assert_eq!(documented, named);
}

#[test]
fn every_verb_is_in_the_operations_guide() {
    let text = read("docs/operations.md");
    for verb in Arguments::command().get_subcommands() {
        let row = format!("| `orchestra {}` |", verb.get_name());
        let line = text.lines().find(|line| line.starts_with(&row)).unwrap_or_else(|| panic!("no row {row}"));
        for inner in verb.get_subcommands() {
            assert!(line.contains(&format!("`{}`", inner.get_name())), "{row} lacks {}", inner.get_name());
        }
    }
}

#[test]
fn every_file_that_a_document_links_to_exists() {
    for document in [
        "README.md",
        "ARCHITECTURE.md",
        "actors/README.md",
        "docs/adding-a.md",
        "docs/operations.md",
        "docs/security.md",
    ] {
        let text = read(document);
        let folder = root().join(document).parent().expect("a folder").to_owned();
        for target in text.split("](").skip(1).filter_map(|rest| rest.split(')').next()) {
            let target = target.split('#').next().unwrap_or_default();
            assert!(folder.join(target).exists(), "{document} links to {target}");
        }
        // Paths from the root, as they stand in the text: with a folder and a suffix.
        let quoted = text.split('`').skip(1).step_by(2);
        let known = ["events/", "runtime/", "actors/", "web/", "src/", "tests/", "docs/", "migrations/"];
        let suffixes = [".rs", ".toml", ".md", ".json", ".sql", ".mjs"];
        for path in
            quoted.filter(|path| known.iter().any(|folder| path.starts_with(folder)) && !path.contains(['*', 'N', ' ']))
        {
            if path.ends_with('/') || suffixes.iter().any(|suffix| path.ends_with(suffix)) {
                let from_room = ROOMS.iter().any(|room| root().join(room).join(path).exists());
                assert!(root().join(path).exists() || from_room, "{document} speaks of {path}");
            }
        }
    }
}

#[test]
fn every_room_repeats_the_lints_of_all() {
    let shared = |file: &str| {
        let text = read(file);
        let begin = text.find("allow-unwrap-in-tests").unwrap_or_else(|| panic!("{file} lacks the shared lines"));
        let end = text[begin..].match_indices("    # ").nth(1).map_or(text.len(), |(at, _)| begin + at);
        text[begin..end].to_owned()
    };
    let expected = shared("clippy.toml");
    assert!(expected.contains("unbounded_channel"), "{expected}");
    for room in ROOMS {
        assert_eq!(shared(&format!("{room}/clippy.toml")), expected, "{room}/clippy.toml");
    }
}
