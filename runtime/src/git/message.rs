//! Commit messages: the agent's, made harmless, and the lines that Orchestra adds.

use super::Signature;

/// The longest message that is kept, in bytes: longer ones are cut. Long enough for a release's notes.
const MAX_MESSAGE_BYTES: usize = 16 * 1024;
/// The longest value of one added line, in bytes.
const MAX_TRAILER_BYTES: usize = 1024;
/// A line by which forges and people know for whom a commit was made. An agent speaks for nobody: its own are left out,
/// like everything that ends in `-by`, and all of Orchestra's.
const ON_BEHALF: &str = "on-behalf-of";

/// The agent's message: UTF-8, no control or direction characters, no line that claims to be somebody's word, not longer
/// than the bound. Empty if nothing is left.
pub(super) fn clean(message: &[u8]) -> String {
    let text = String::from_utf8_lossy(&message[..message.len().min(MAX_MESSAGE_BYTES)]);
    let text = text.replace("\r\n", "\n").replace('\r', "\n");
    let mut lines: Vec<String> = Vec::new();
    let mut in_claim = false;
    for line in text.split('\n') {
        let line: String = line.chars().filter(|c| *c == '\t' || !is_invisible(*c)).collect();
        // A line that begins with a space goes on with the one before.
        in_claim = if line.starts_with([' ', '\t']) && !line.trim().is_empty() {
            in_claim || is_claim(&line)
        } else {
            is_claim(&line)
        };
        let line = line.trim_end();
        let one_blank_more = line.is_empty() && lines.last().is_none_or(String::is_empty);
        if !in_claim && !one_blank_more {
            lines.push(line.to_owned());
        }
    }
    let mut text = lines.join("\n");
    // What is not UTF-8 has grown.
    text.truncate(text.floor_char_boundary(MAX_MESSAGE_BYTES));
    text.truncate(text.trim_end().len());
    text
}

/// Control characters, and those that are not seen or turn the reading direction (Unicode's default ignorables of
/// general punctuation).
fn is_invisible(c: char) -> bool {
    c.is_control()
        || matches!(c, '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2060}'..='\u{206f}' | '\u{feff}')
}

fn is_claim(line: &str) -> bool {
    let Some((token, _)) = line.split_once(':') else { return false };
    let token = token.trim().to_ascii_lowercase();
    let one_word = !token.is_empty() && token.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'-');
    one_word && (token.ends_with("-by") || token.starts_with("orchestra-") || token == ON_BEHALF)
}

/// Git's commit header has no quoting: what would end a name early is left out.
pub(super) fn one_line(text: &str, otherwise: &str) -> String {
    let text: String = text.chars().filter(|c| !c.is_control() && !matches!(c, '<' | '>')).collect();
    let text = text.trim();
    if text.is_empty() { otherwise.to_owned() } else { text.to_owned() }
}

/// The message with these lines at its end, in a paragraph of their own, unless they are there already.
pub(super) fn with_trailers(message: &str, trailers: &[(String, String)], co_authors: &[Signature]) -> String {
    let mut message = message.trim_end().to_owned();
    let known = trailers.iter().filter_map(|(token, value)| {
        let token: String = token.chars().filter(|c| c.is_ascii_alphanumeric() || *c == '-').collect();
        let mut value: String = value.chars().filter(|c| !c.is_control()).collect();
        value.truncate(value.floor_char_boundary(MAX_TRAILER_BYTES));
        (!token.is_empty()).then(|| format!("{token}: {}", value.trim()))
    });
    let co_authors = co_authors.iter().map(|who| {
        let (name, email) = (one_line(&who.name, "Orchestra"), one_line(&who.email, "orchestra@localhost"));
        format!("Co-authored-by: {name} <{email}>")
    });
    let last = message.rsplit("\n\n").next().unwrap_or_default();
    let is_block = message.contains("\n\n") && last.lines().all(is_trailer);
    let added: Vec<String> =
        known.chain(co_authors).filter(|line| !last.lines().any(|there| is_block && there == line)).collect();
    if !added.is_empty() {
        message.push_str(if is_block { "\n" } else { "\n\n" });
        message.push_str(&added.join("\n"));
    }
    message.push('\n');
    message
}

fn is_trailer(line: &str) -> bool {
    let Some((token, value)) = line.split_once(": ") else { return false };
    !value.is_empty() && !token.is_empty() && token.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'-')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_message_is_cleaned_and_says_only_what_the_agent_may_say() {
        for (message, expected) in [
            ("Fix it\n\nBecause.\n", "Fix it\n\nBecause."),
            ("\n\n  \nFix\n\n\n\nx\n\n", "Fix\n\nx"),
            ("Fix\r\n\r\nx\ry", "Fix\n\nx\ny"),
            ("F\u{1b}[31mix\0 \u{202e}it\u{200b}", "F[31mix it"),
            (
                "Fix\n\nRefs: #12\nCo-authored-by: Eve <e@x>\nSIGNED-OFF-BY : Eve <e@x>\nOrchestra-Task: task_1",
                "Fix\n\nRefs: #12",
            ),
            ("Fix\n\nCo-authored-by: Eve\n <e@x>\n\tmore\nRefs: #1", "Fix\n\nRefs: #1"),
            ("Fix\n\n  Reviewed-by: Eve", "Fix"),
            ("Fix\n\nCo-\u{200d}authored-by: Eve <e@x>", "Fix"),
            ("Co-authored-by: Eve <e@x>", ""),
            (
                "Note: the sum is paid by: nobody\n\ncaught by us: a bug",
                "Note: the sum is paid by: nobody\n\ncaught by us: a bug",
            ),
        ] {
            assert_eq!(clean(message.as_bytes()), expected, "{message:?}");
        }
        assert_eq!(clean(b"caf\xe9"), "caf\u{fffd}");
        assert!(clean(&vec![b'x'; 10 << 20]).len() <= MAX_MESSAGE_BYTES);
    }

    #[test]
    fn trailers_stand_in_a_paragraph_of_their_own() {
        let trailers = [("Orchestra-Task".to_owned(), "task_1\nEvil: x".to_owned())];
        let eve = Signature { name: "E <x>\n".to_owned(), email: "e@x>".to_owned() };
        assert_eq!(
            with_trailers("Fix\n", &trailers, std::slice::from_ref(&eve)),
            "Fix\n\nOrchestra-Task: task_1Evil: x\nCo-authored-by: E x <e@x>\n"
        );
        assert_eq!(
            with_trailers("Fix\n\nRefs: #1", &trailers, &[]),
            "Fix\n\nRefs: #1\nOrchestra-Task: task_1Evil: x\n"
        );
        let once = with_trailers("Fix", &trailers, &[]);
        assert_eq!(with_trailers(&once, &trailers, &[]), once, "said once");
        assert_eq!(with_trailers("Note: x", &trailers, &[]), "Note: x\n\nOrchestra-Task: task_1Evil: x\n");
        assert_eq!(with_trailers("Fix", &[], &[]), "Fix\n");
    }
}
