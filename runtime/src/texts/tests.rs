//! The texts as a reader meets them, and the operator's mistakes as an operator meets them.

use super::words::MARKER_WORD;
use super::*;

fn folder(files: &[(&str, &str)]) -> tempfile::TempDir {
    let folder = tempfile::tempdir().expect("a folder");
    for (name, content) in files {
        std::fs::write(folder.path().join(name), content).expect("writable");
    }
    folder
}

fn refused(files: &[(&str, &str)]) -> TextError {
    Texts::open(Some(folder(files).path())).expect_err("a bad template")
}

#[test]
fn every_built_in_template_renders_with_every_sample_and_keeps_its_bounds() {
    for tried in Texts::default().check() {
        let text = tried.outcome.unwrap_or_else(|error| panic!("{:?} {}: {error}", tried.text, tried.sample));
        let at = format!("{:?} {}:\n{text}", tried.text, tried.sample);
        match tried.text {
            Text::Title => assert!(text.lines().count() == 1 && text.chars().count() <= MAX_TITLE_CHARS, "{at}"),
            Text::Status => assert!(text.lines().count() == 1 && text.chars().count() <= MAX_STATUS_CHARS, "{at}"),
            Text::CommitMessage => {
                let mut lines = text.lines();
                assert!(lines.next().is_some_and(|line| line.chars().count() <= MAX_SUBJECT_CHARS), "{at}");
                assert!(lines.next().is_none_or(str::is_empty), "{at}");
                assert!(text.len() <= MAX_MESSAGE_BYTES, "{at}");
                assert!(
                    !text.lines().any(|line| line.starts_with("Orchestra-") || line.starts_with("Signed-off")),
                    "{at}"
                );
            }
            Text::Body | Text::Comment => {
                assert!(text.len() <= MAX_BODY_BYTES, "{at}");
                let marker = marker(TaskText::sample().id, 0);
                assert!(text.ends_with(&marker), "{at}");
                assert_eq!(text.matches(MARKER_WORD).count(), 1, "{at}");
                assert_eq!(text.matches("<!--").count(), 1, "{at}");
                assert!(!text.contains("<script") && !text.contains("javascript:"), "{at}");
                let said = |line: &str| line.trim_start_matches([' ', '>', '-']).to_owned();
                assert!(!text.lines().map(said).any(|line| line.starts_with('/')), "{at}");
                assert!(!text.contains("![") && !text.contains("@octocat"), "{at}");
            }
        }
        assert!(!text.contains("@everybody") && !text.contains("@octocat"), "{at}");
        assert!(!text.contains("\n\n\n") && !text.contains(" \n\n "), "{at}");
        assert!(!text.chars().any(|c| (c.is_control() && c != '\n') || c == '\u{202e}'), "{at}");
    }
}

#[test]
fn the_samples_cover_what_may_be_there_and_what_may_be_missing() {
    let samples = TaskText::samples();
    let some = |has: &dyn Fn(&TaskText) -> bool| {
        assert!(samples.iter().any(|(_, task)| has(task)) && samples.iter().any(|(_, task)| !has(task)));
    };
    some(&|task| task.project.is_some() && task.task_type.is_some());
    some(&|task| task.summary.is_some());
    some(&|task| task.link.is_some());
    some(&|task| task.requested_title.is_some());
    some(&|task| task.requested_body.is_some());
    some(&|task| task.pull_requests.is_empty());
    some(&|task| task.commits.is_empty());
    some(&|task| task.attempt > 1);
    some(&|task| matches!(task.standing, Standing::Failed(_)));
}

#[test]
fn a_pull_request_says_what_was_done_and_at_what_cost() {
    let (texts, task) = (Texts::default(), TaskText::sample());
    assert_eq!(texts.title(&task), "Terraform AWS provider 6");
    assert_eq!(texts.title(&TaskText { requested_title: None, ..task.clone() }), task.task);
    let body = texts.body(&task);
    for part in [
        "> Bump terraform-aws-provider from 5.x to 6.x",
        "`terraform validate` passes.",
        "- Raise the provider to 6.0",
        "- github:acme/web: https://github.com/acme/web/pull/12",
        "7 files changed, +41 −38",
        "0.4205 USD",
        "4 min 14 s",
        "attempt 2",
        "[task](https://orchestra.example/tasks/task_01k)",
    ] {
        assert!(body.contains(part), "{part:?} is not in\n{body}");
    }
    let asked = texts.body(&TaskText { requested_body: Some("As agreed.".to_owned()), ..task.clone() });
    assert!(asked.starts_with("As agreed.") && !asked.contains("> Bump"), "{asked}");
    let message = texts.commit_message(&TaskText { requested_title: None, ..task.clone() });
    assert!(
        message.starts_with("Bump terraform-aws-provider from 5.x to 6.x; update breaking calls\n\nThe provider"),
        "{message}"
    );
    assert_eq!(texts.status(&task), "Done: 7 files, 0.4205 USD");
    let comment = texts.comment(&task);
    assert!(comment.contains("| Cost | 0.4205 USD |") && comment.contains("182340 in, 9120 out"), "{comment}");
    assert_eq!(trailers(&task)[0], ("Orchestra-Task".to_owned(), task.id.to_string()));
}

#[test]
fn a_task_of_several_repositories_marks_each_pull_request() {
    let task = TaskText { repo_index: 3, ..TaskText::sample() };
    assert!(Texts::default().body(&task).ends_with(&format!("<!-- orchestra:task={} repo=3 -->", task.id)));
}

#[test]
fn an_operators_template_replaces_the_built_in_one() {
    let folder = folder(&[
        ("pull_request_title.txt", "[bot] {{ task_type or 'task' }}: {{ task | first_line }}"),
        ("pull_request_body.md", "{{ task }}\n<!-- orchestra:task=forged repo=9 -->"),
        (".pull_request_body.md.swp", "junk"),
    ]);
    let texts = Texts::open(Some(folder.path())).expect("good templates");
    let task = TaskText { task: "Fix it".to_owned(), ..TaskText::sample() };
    assert_eq!(texts.title(&task), "[bot] dependency-upgrade: Fix it");
    let body = texts.body(&task);
    assert_eq!(body.matches(MARKER_WORD).count(), 1, "{body}");
    assert!(body.ends_with(&marker(task.id, 0)), "{body}");
    assert_eq!(texts.status(&task), Texts::default().status(&task), "the others stay");
    assert!(Texts::open(Some(Path::new("/nonexistent/texts"))).is_ok(), "no folder, no override");
}

#[test]
fn a_mistake_names_its_file_and_line() {
    match refused(&[("comment.md", "fine\n{% if %}")]) {
        TextError::Syntax { path, line: 2, .. } => assert!(path.ends_with("comment.md")),
        other => panic!("{other}"),
    }
    match refused(&[("status.txt", "a\nb\n{{ modell }}")]) {
        TextError::Render { path, line: 3, ref reason, .. } => {
            assert!(path.ends_with("status.txt") && reason.contains("modell"), "{reason}");
        }
        other => panic!("{other}"),
    }
    let error = refused(&[("title.txt", "x")]);
    assert!(matches!(&error, TextError::UnknownName { path } if path.ends_with("title.txt")), "{error}");
    assert!(error.to_string().contains("pull_request_title.txt"), "{error}");
    assert!(matches!(refused(&[("pull_request_title.txt", "{# nothing #}")]), TextError::Empty { .. }));
    let large = "x".repeat(usize::try_from(MAX_TEMPLATE_BYTES).expect("small") + 1);
    assert!(matches!(refused(&[("comment.md", &large)]), TextError::Unreadable { .. }));
    // Only one of the samples has no project: it is found all the same.
    let only = refused(&[("status.txt", "{{ project | upper }} {{ failure.code if state == 'succeeded' else '' }}")]);
    assert!(matches!(only, TextError::Render { .. }), "{only}");
}

#[test]
fn a_template_that_does_not_end_is_stopped() {
    let started = std::time::Instant::now();
    let endless = "{% for a in range(10000) %}{% for b in range(10000) %}{{ b }}{% endfor %}{% endfor %}";
    match refused(&[("comment.md", endless)]) {
        TextError::Render { reason, .. } => assert!(reason.contains("steps") || reason.contains("writes"), "{reason}"),
        other => panic!("{other}"),
    }
    let silent = "{% for a in range(10000) %}{% for b in range(10000) %}{% set c = b %}{% endfor %}{% endfor %}x";
    match refused(&[("comment.md", silent)]) {
        TextError::Render { reason, .. } => assert!(reason.contains("steps"), "{reason}"),
        other => panic!("{other}"),
    }
    let wordy = "{% for a in range(1000) %}{{ 'x' * 10000 }}{% endfor %}";
    match refused(&[("comment.md", wordy)]) {
        TextError::Render { reason, .. } => assert!(reason.contains("writes more"), "{reason}"),
        other => panic!("{other}"),
    }
    assert!(started.elapsed() < std::time::Duration::from_secs(10), "{:?}", started.elapsed());
}

#[test]
fn one_that_fails_later_does_not_cost_the_pull_request() {
    // Fine with every sample, and not with this task.
    let folder = folder(&[(
        "pull_request_title.txt",
        "{% if model == 'odd' %}{{ nothing }}{% endif %}{{ task | first_line }}!",
    )]);
    let texts = Texts::open(Some(folder.path())).expect("good with the samples");
    let task = TaskText { model: "odd".to_owned(), requested_title: None, ..TaskText::sample() };
    assert_eq!(texts.title(&task), task.task);
}
