//! Texts as both Bitbuckets take them: bounded, and without HTML; and what is told of what they do not have.
//!
//! Bitbucket shows an HTML comment to everybody, as it stands. What renders to nothing there is a Markdown link
//! definition that no link refers to (`[//]: # (text)`), so the marks that Orchestra leaves in its texts become that.

use super::http::Session;
use super::wish::shortened;
use super::{Feature, Note};

/// Characters that a pull request's title may have (both Bitbuckets refuse longer ones).
const MAX_TITLE: usize = 255;
/// Characters that a description or a comment may have (both Bitbuckets refuse longer ones).
const MAX_TEXT: usize = 32_768;

const HIDDEN: &str = "[//]: # (";

/// A title that is taken: one line, bounded.
pub(super) fn title(text: &str) -> String {
    let line: String = text.split_whitespace().collect::<Vec<_>>().join(" ");
    shortened(&line, MAX_TITLE)
}

/// How a marker stands in the texts here.
pub(super) fn mark(marker: &str) -> String {
    unseen(marker).trim().to_owned()
}

/// A description or comment that is taken, with everything hidden in it kept, and `marker` at its end if it is missing.
pub(super) fn body(text: &str, marker: Option<&str>) -> String {
    let mut text = unseen(text);
    if let Some(mark) = marker.map(mark).filter(|mark| !text.contains(mark.as_str())) {
        text = format!("{}\n\n{mark}", text.trim_end());
    }
    if text.chars().count() <= MAX_TEXT {
        return text;
    }
    let (hidden, seen): (Vec<&str>, Vec<&str>) = text.lines().partition(|line| line.starts_with(HIDDEN));
    let hidden = shortened(&hidden.join("\n"), MAX_TEXT / 2);
    let seen = shortened(&seen.join("\n"), MAX_TEXT - hidden.chars().count() - 2);
    format!("{seen}\n\n{hidden}")
}

/// Each HTML comment of one line as a link definition. It needs a line of its own after an empty one: without, it would
/// go on with the paragraph before it, and be seen.
fn unseen(text: &str) -> String {
    let mut told = String::with_capacity(text.len());
    let mut rest = text;
    while let Some((before, after)) = rest.split_once("<!--") {
        told.push_str(before);
        match after.split_once("-->") {
            Some((comment, later)) if !comment.contains(['(', ')', '\n']) => {
                let gap = if told.is_empty() || told.ends_with("\n\n") { "" } else { "\n\n" };
                let end = if later.is_empty() || later.starts_with('\n') { "" } else { "\n" };
                told.push_str(&format!("{gap}{HIDDEN}{}){end}", comment.trim()));
                rest = later;
            }
            Some(_) | None => {
                told.push_str("<!--");
                rest = after;
            }
        }
    }
    told.push_str(rest);
    told
}

/// That there are no labels, when some were wished for.
pub(super) fn no_labels(session: &Session<'_>, labels: &[String]) -> Option<Note> {
    let detail = format!("Bitbucket has no labels on pull requests; left out: {}.", labels.join(", "));
    (!labels.is_empty()).then(|| Note { feature: Feature::Labels, detail: session.line(&detail) })
}

/// That somebody is not asked for a review.
pub(super) fn unasked(session: &Session<'_>, name: &str, why: &str) -> Note {
    Note { feature: Feature::Reviewers, detail: session.line(&format!("{name} is not asked for a review: {why}")) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_marker_is_hidden_in_the_way_that_is_unseen_here() {
        assert_eq!(mark("<!-- orchestra:task_1 -->"), "[//]: # (orchestra:task_1)");
        let told = body("Words.\n<!-- orchestra:task_1 -->\nMore.", Some("<!-- orchestra:task_1 -->"));
        assert_eq!(told, "Words.\n\n\n[//]: # (orchestra:task_1)\nMore.");
        assert_eq!(body("Words.", Some("<!-- a -->")), "Words.\n\n[//]: # (a)");
        assert_eq!(body("<!-- open", None), "<!-- open");
        assert_eq!(mark("plain words"), "plain words");
    }

    #[test]
    fn what_is_too_long_is_cut_and_keeps_its_marks() {
        let long = format!("<!-- first -->\n{}", "ü".repeat(MAX_TEXT + 10));
        let told = body(&long, Some("<!-- second -->"));
        assert_eq!(told.chars().count(), MAX_TEXT);
        assert!(told.contains("[//]: # (first)") && told.ends_with("[//]: # (second)"));
        assert_eq!(title(&"é".repeat(300)).chars().count(), MAX_TITLE);
        assert_eq!(title(" two\r\nlines "), "two lines");
    }
}
