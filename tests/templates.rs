//! An operator's texts are tried before anybody's pull request depends on them: on request, and at every start.

use std::path::Path;
use std::process::{Command, Output};

fn orchestra(arguments: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_orchestra"))
        .args(arguments)
        .env_remove("ORCHESTRA_TEMPLATES_DIR")
        .output()
        .unwrap()
}

fn said(output: &Output) -> (String, String) {
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    (text(&output.stdout), text(&output.stderr))
}

fn folder(files: &[(&str, &str)]) -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    std::fs::create_dir(folder.path().join("texts")).unwrap();
    for (name, content) in files {
        std::fs::write(folder.path().join(name), content).unwrap();
    }
    folder
}

fn name(path: &Path) -> &str {
    path.to_str().unwrap()
}

#[test]
fn every_template_is_shown_with_every_sample() {
    let fine = folder(&[("texts/pull_request_title.txt", "[bot] {{ task | first_line }}")]);
    let output = orchestra(&["templates", "check", name(fine.path())]);
    let (out, err) = said(&output);
    assert!(output.status.success(), "{err}");
    for part in ["pull_request_title.txt · whole", "[bot] Fix the build", "comment.md · failed", "<!-- orchestra:task="]
    {
        assert!(out.contains(part), "{part:?} is not in\n{out}");
    }
    let output = orchestra(&["templates", "check", name(fine.path()), "--show", "status.txt"]);
    let (out, _) = said(&output);
    assert!(output.status.success() && out.contains("status.txt · running") && !out.contains("comment.md"), "{out}");
    let output = orchestra(&["templates", "check", name(fine.path()), "--show", "titel.txt"]);
    let (_, err) = said(&output);
    assert!(!output.status.success() && err.contains("pull_request_title.txt"), "{err}");
}

#[test]
fn a_mistake_is_named_with_its_file_and_line_and_the_server_does_not_start_with_it() {
    for (file, content, expected) in [
        ("texts/comment.md", "fine\n{{ taks }}", "texts/comment.md:2: "),
        ("texts/status.txt", "{% if %}", "texts/status.txt:1: "),
        ("texts/body.md", "x", "texts/body.md: no text has that name"),
        ("task_row.html", "{{ nothing }}", "task_row.html: "),
    ] {
        let wrong = folder(&[(file, content)]);
        let output = orchestra(&["templates", "check", name(wrong.path())]);
        let (_, err) = said(&output);
        assert_eq!(output.status.code(), Some(1), "{file}: {err}");
        assert!(err.contains(expected), "{file}: {err}");
        if !file.starts_with("texts/") {
            // A row of the dashboard falls back to the built-in one.
            continue;
        }
        let data = tempfile::tempdir().unwrap();
        let output = Command::new(env!("CARGO_BIN_EXE_orchestra"))
            .args(["serve", "--listen", "127.0.0.1:0", "--data", name(data.path())])
            .env("ORCHESTRA_TEMPLATES_DIR", wrong.path())
            .output()
            .unwrap();
        let (_, err) = said(&output);
        assert!(!output.status.success() && err.contains(expected), "{file}: {err}");
    }
}
