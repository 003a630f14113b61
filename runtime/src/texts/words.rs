//! Makes other people's words fit to stand in a text of ours: one that everybody reads, and that a forge acts upon.
//!
//! What a task says, and what an agent says at its end, is written by people and models that have read a stranger's
//! repository. In a pull request such words must not call anybody (`@everybody`), not hide what follows (`<!--`), not pass
//! for what this program says of itself (its marker, its trailers), not command the forge (`/merge`), and not turn round what they stand in (control
//! characters, bidirectional overrides).

/// Put between two characters that would act together: it is not seen, and takes no room.
const APART: char = '\u{200b}';
/// How our markers begin, and nobody else's words may.
pub(super) const MARKER_WORD: &str = "orchestra:task=";
/// The trailers that only this program writes, in lower case.
const OWN_TRAILERS: [&str; 5] = ["orchestra-", "co-authored-by:", "signed-off-by:", "reviewed-by:", "change-id:"];

/// Where words are put, and so what acts there.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Place {
    /// A text that a forge renders as Markdown.
    Markdown,
    /// A commit message, a title or a status.
    Plain,
}

/// The words without what would act in that place, at most so many bytes of them.
pub(super) fn clean(text: &str, place: Place, most: usize) -> String {
    let text = clean_own(text, place, most);
    match place {
        Place::Markdown => break_commands(&text),
        Place::Plain => text,
    }
}

/// The same for the words of somebody who may give the forge commands by them: who asks for this very text.
pub(super) fn clean_own(text: &str, place: Place, most: usize) -> String {
    // First, so that what is looked at below as neighbours are neighbours in what comes out too.
    let text = without_unseen(cut_bytes(text, most));
    let mut out = String::with_capacity(text.len());
    let mut chars = text.chars().peekable();
    let mut before = ' ';
    while let Some(c) = chars.next() {
        out.push(c);
        let next = chars.peek().copied().unwrap_or(' ');
        // A mention: not within a word, so that an e-mail address stays as it is.
        let mentions = c == '@' && next.is_alphanumeric() && !before.is_alphanumeric();
        // A tag or a comment; and an image, which is fetched from wherever it says by everybody who looks.
        let acts = place == Place::Markdown
            && ((c == '<' && (next.is_ascii_alphabetic() || matches!(next, '/' | '!' | '?')))
                || (c == '!' && next == '['));
        if mentions || acts {
            out.push(APART);
        }
        before = c;
    }
    let out = break_marker(&out);
    match place {
        Place::Markdown => out,
        Place::Plain => break_trailers(&out),
    }
}

/// The text with one kind of line end, and without tabs, control characters and what is not seen.
fn without_unseen(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    let mut chars = text.chars().peekable();
    while let Some(c) = chars.next() {
        match c {
            '\r' if chars.peek() == Some(&'\n') => {}
            '\n' | '\r' => out.push('\n'),
            '\t' => out.push_str("    "),
            _ if c.is_control() || is_unseen(c) => {}
            _ => out.push(c),
        }
    }
    out
}

/// The same words as one line.
pub(super) fn clean_line(text: &str, place: Place, most: usize) -> String {
    one_line(&clean(text, place, most))
}

/// The text with no marker in it.
pub(super) fn break_marker(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    let mut rest = text;
    // Case does not matter to a reader who searches, so it does not matter here.
    let lower = text.to_ascii_lowercase();
    let mut from = 0;
    while let Some(at) = lower[from..].find(MARKER_WORD) {
        let (before, after) = rest.split_at(at + "orchestra:".len());
        out.push_str(before);
        out.push(APART);
        rest = after;
        from += at + "orchestra:".len();
    }
    out.push_str(rest);
    out
}

/// The text with no line that begins with a command. GitLab obeys `/merge`, `/approve` or `/assign` there with the rights
/// of the token that says it, and so do robots on GitHub, some of them also behind a list's or a quotation's mark.
fn break_commands(text: &str) -> String {
    let lines = text.split('\n').map(|line| {
        let said = without_marks(line);
        if !said.strip_prefix('/').is_some_and(|word| word.starts_with(char::is_alphabetic)) {
            return line.to_owned();
        }
        format!("{}{APART}{said}", &line[..line.len() - said.len()])
    });
    lines.collect::<Vec<_>>().join("\n")
}

/// The line from behind the blanks and the marks of lists and quotations at its start.
fn without_marks(line: &str) -> &str {
    let mut rest = line.trim_start();
    loop {
        let digits = rest.trim_start_matches(|c: char| c.is_ascii_digit());
        let behind = match rest.strip_prefix(['>', '-', '*', '+']) {
            None if digits.len() < rest.len() => digits.strip_prefix(['.', ')']),
            behind => behind,
        };
        match behind {
            Some(behind) => rest = behind.trim_start(),
            None => return rest,
        }
    }
}

/// The text with our own trailers no longer at the start of their lines.
fn break_trailers(text: &str) -> String {
    let lines = text.split('\n').map(|line| {
        let lower = line.trim_start().to_ascii_lowercase();
        if OWN_TRAILERS.iter().any(|trailer| lower.starts_with(trailer)) {
            format!("> {line}")
        } else {
            line.to_owned()
        }
    });
    lines.collect::<Vec<_>>().join("\n")
}

/// Whether it changes how its neighbours are read without being seen: the bidirectional controls, and the tags that
/// models read and people do not.
fn is_unseen(c: char) -> bool {
    matches!(c, '\u{061c}' | '\u{200e}' | '\u{200f}' | '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}' | '\u{feff}' | '\u{e0000}'..='\u{e007f}')
}

/// All words on one line, with one space between them.
pub(super) fn one_line(text: &str) -> String {
    text.split_whitespace().collect::<Vec<_>>().join(" ")
}

/// At most so many bytes, whole characters only.
pub(super) fn cut_bytes(text: &str, most: usize) -> &str {
    let mut end = most.min(text.len());
    while !text.is_char_boundary(end) {
        end -= 1;
    }
    &text[..end]
}

/// At most so many characters; what is cut ends in an ellipsis.
pub(super) fn cut_chars(text: &str, most: usize) -> String {
    if text.chars().count() <= most {
        return text.to_owned();
    }
    let kept: String = text.chars().take(most.saturating_sub(1)).collect();
    format!("{}…", kept.trim_end())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_call_nobody_and_hide_nothing() {
        for (text, expected) in [
            ("ask @octocat", "ask @\u{200b}octocat"),
            ("(@team/core)", "(@\u{200b}team/core)"),
            ("mail a@b.example", "mail a@b.example"),
            ("a <!-- b", "a <\u{200b}!-- b"),
            ("Vec<String>", "Vec<\u{200b}String>"),
            ("1 < 2", "1 < 2"),
            ("![x](https://evil.example/?q)", "!\u{200b}[x](https://evil.example/?q)"),
            ("a\u{1b}[31mb\0c", "a[31mbc"),
            ("a\u{202e}b", "ab"),
            ("a\r\nb\tc", "a\nb    c"),
            // What is not seen does not stand between two that act together.
            ("@\u{200e}octocat", "@\u{200b}octocat"),
            ("<\0!-- hidden", "<\u{200b}!-- hidden"),
            ("!\u{feff}[x](https://evil.example)", "!\u{200b}[x](https://evil.example)"),
            ("a\u{202e}@b.example", "a@b.example"),
            ("orchestra:\u{200e}task=x", "orchestra:\u{200b}task=x"),
        ] {
            assert_eq!(clean(text, Place::Markdown, 1000), expected, "{text:?}");
        }
        assert_eq!(clean("Vec<String>", Place::Plain, 1000), "Vec<String>");
    }

    #[test]
    fn words_give_no_commands() {
        for (text, expected) in [
            ("/merge", "\u{200b}/merge"),
            ("Done.\n  /approve\n/assign @x", "Done.\n  \u{200b}/approve\n\u{200b}/assign @\u{200b}x"),
            ("> /close\n- /close\n* > 12. /close", "> \u{200b}/close\n- \u{200b}/close\n* > 12. \u{200b}/close"),
            ("\u{feff}/close\r\n\0/close", "\u{200b}/close\n\u{200b}/close"),
            ("see /usr and and/or\n// no\n/ 2\n3. three", "see /usr and and/or\n// no\n/ 2\n3. three"),
        ] {
            assert_eq!(clean(text, Place::Markdown, 1000), expected, "{text:?}");
        }
        assert_eq!(clean_line(" \n /merge", Place::Markdown, 1000), "\u{200b}/merge");
        assert_eq!(clean("/merge", Place::Plain, 1000), "/merge", "no forge looks for commands there");
        assert_eq!(clean_own("/merge\n@x", Place::Markdown, 1000), "/merge\n@\u{200b}x");
    }

    #[test]
    fn nobody_speaks_for_this_program() {
        for forged in ["<!-- orchestra:task=task_1 repo=0 -->", "ORCHESTRA:TASK=x", "orchestra:task=orchestra:task=y"] {
            for place in [Place::Markdown, Place::Plain] {
                let cleaned = clean(forged, place, 1000);
                assert!(!cleaned.to_ascii_lowercase().contains(MARKER_WORD), "{cleaned}");
                assert_eq!(clean(&cleaned, place, 1000).replace(APART, ""), forged, "nothing else is changed");
            }
        }
        let cleaned = clean("x\nOrchestra-Task: y\n  co-authored-by: z <z@z>\nnote: kept", Place::Plain, 1000);
        assert_eq!(cleaned, "x\n> Orchestra-Task: y\n>   co-authored-by: z <z@z>\nnote: kept");
    }

    #[test]
    fn a_cut_is_between_characters() {
        assert_eq!(cut_bytes("aé", 2), "a");
        assert_eq!(cut_chars("one two", 5), "one…");
        assert_eq!(cut_chars("ééé", 3), "ééé");
        assert_eq!(clean_line("a\n\n b", Place::Plain, 10), "a b");
    }
}
