//! What the model is shown of a command's output: bounded, readable, and honest about what is missing.

use std::time::Duration;

use orchestra_events::task::event::ToolOutcome;

/// The model is shown at most so many bytes of one tool's output, the notes about it aside.
pub const MAX_OUTPUT_BYTES: usize = 24 * 1024;

/// The longest terminal control sequence that is taken for one.
const MAX_SEQUENCE: usize = 4 * 1024;

/// How a command ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum End {
    /// By itself, with this code.
    Exited(i32),
    /// By this signal.
    Signalled(i32),
    /// By its limit.
    TimedOut(Duration),
    /// By the kernel, for memory.
    OutOfMemory,
}

impl End {
    /// The same, as the task's stream records it.
    pub fn outcome(self) -> ToolOutcome {
        match self {
            Self::Exited(0) => ToolOutcome::Ok,
            Self::Exited(_) | Self::Signalled(_) => ToolOutcome::Error,
            Self::TimedOut(_) => ToolOutcome::TimedOut,
            Self::OutOfMemory => ToolOutcome::OutOfMemory,
        }
    }

    fn note(self) -> String {
        match self {
            Self::Exited(code) => format!("[exit code {code}]"),
            Self::Signalled(signal) => format!("[killed by signal {signal}]"),
            Self::TimedOut(limit) => format!("[stopped after its limit of {} s]", limit.as_secs()),
            Self::OutOfMemory => "[killed: the sandbox is out of memory]".into(),
        }
    }
}

/// Renders output of `total` bytes of which `head` and `tail` were kept (everything, when they add up to it).
/// Returns the text, and how many bytes of the output are not in it.
pub fn render_output(head: &[u8], tail: &[u8], total: u64, end: End) -> (String, u64) {
    let kept = (head.len() + tail.len()) as u64;
    let whole = kept >= total;
    let mut joined = Vec::new();
    if whole {
        joined = [head, tail].concat();
        let text = plain(&joined);
        if text.len() <= MAX_OUTPUT_BYTES {
            return (with_note(text, end), 0);
        }
    }
    let (head, tail) = if whole { joined.split_at(joined.len() / 2) } else { (head, tail) };
    // Neither half needs the other's room: what the head leaves, the tail may use.
    let (first, first_bytes) = fitting(head.len(), MAX_OUTPUT_BYTES / 2, |bytes| &head[..bytes]);
    let room = MAX_OUTPUT_BYTES - first.len();
    let (last, last_bytes) = fitting(tail.len(), room, |bytes| &tail[tail.len() - bytes..]);
    let omitted = total.max(kept) - (first_bytes + last_bytes) as u64;
    let text = format!("{}\n[… {omitted} bytes left out …]\n{}", first.trim_end_matches('\n'), last);
    (with_note(text, end), omitted)
}

/// The longest piece whose text fits into `room`, found by halving the rest.
fn fitting<'a>(available: usize, room: usize, piece: impl Fn(usize) -> &'a [u8]) -> (String, usize) {
    let mut bytes = available.min(room);
    loop {
        let text = plain(piece(bytes));
        if text.len() <= room {
            return (text, bytes);
        }
        bytes /= 2;
    }
}

fn with_note(text: String, end: End) -> String {
    let text = text.trim_end_matches('\n');
    if text.is_empty() { format!("(no output)\n{}", end.note()) } else { format!("{text}\n{}", end.note()) }
}

/// The bytes as text for a reader: UTF-8 where it is, no terminal sequences, no control characters.
pub(super) fn plain(bytes: &[u8]) -> String {
    let text = String::from_utf8_lossy(bytes);
    let mut out = String::with_capacity(text.len());
    let mut rest = &*text;
    while let Some(c) = rest.chars().next() {
        rest = &rest[c.len_utf8()..];
        match c {
            '\u{1b}' => rest = &rest[sequence_length(rest)..],
            '\u{9b}' => rest = &rest[csi_length(rest)..],
            '\r' if rest.starts_with('\n') => {}
            // A progress bar's way to begin its line again.
            '\r' => out.push('\n'),
            '\n' | '\t' => out.push(c),
            c if c.is_control() => {}
            c => out.push(c),
        }
    }
    out
}

/// The length of the sequence that an escape character has begun (ECMA-48, section 5).
fn sequence_length(rest: &str) -> usize {
    let bytes = rest.as_bytes();
    match bytes.first() {
        Some(b'[') => 1 + csi_length(&rest[1..]),
        // Strings, such as a window's title: to the string terminator, or to the bell.
        Some(b']' | b'P' | b'X' | b'^' | b'_') => {
            let end = bytes.iter().take(MAX_SEQUENCE).position(|byte| matches!(byte, 0x07 | 0x1b));
            match end {
                Some(at) if bytes[at] == 0x07 => at + 1,
                Some(at) if bytes.get(at + 1) == Some(&b'\\') => at + 2,
                // Not terminated: the rest is text, not a title.
                _ => 1,
            }
        }
        Some(0x20..=0x2f) => {
            let intermediate = bytes.iter().take_while(|byte| (0x20..=0x2f).contains(*byte)).count();
            let last = bytes.get(intermediate).is_some_and(|byte| (0x30..=0x7e).contains(byte));
            intermediate + usize::from(last)
        }
        Some(0x30..=0x7e) => 1,
        _ => 0,
    }
}

fn csi_length(rest: &str) -> usize {
    let bytes = rest.as_bytes();
    let parameters = bytes.iter().take(MAX_SEQUENCE).take_while(|byte| (0x20..=0x3f).contains(*byte)).count();
    match bytes.get(parameters) {
        Some(0x40..=0x7e) => parameters + 1,
        // Cut off in the middle.
        None => parameters,
        _ => 0,
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn short_output_is_shown_whole_with_its_exit_code() {
        for (output, end, expected) in [
            ("one\ntwo\n", End::Exited(0), "one\ntwo\n[exit code 0]"),
            ("", End::Exited(1), "(no output)\n[exit code 1]"),
            ("x", End::Signalled(9), "x\n[killed by signal 9]"),
            ("x", End::TimedOut(Duration::from_secs(120)), "x\n[stopped after its limit of 120 s]"),
            ("x", End::OutOfMemory, "x\n[killed: the sandbox is out of memory]"),
        ] {
            assert_eq!(render_output(output.as_bytes(), b"", output.len() as u64, end), (expected.to_owned(), 0));
        }
    }

    #[test]
    fn terminal_sequences_and_control_characters_are_gone() {
        for (raw, expected) in [
            ("\u{1b}[1;31mred\u{1b}[0m", "red"),
            ("\u{1b}]0;title\u{7}text", "text"),
            ("\u{1b}]8;;http://x\u{1b}\\link\u{1b}]8;;\u{1b}\\", "link"),
            ("\u{1b}]0;never ended", "0;never ended"),
            ("\u{1b}(Bplain\u{1b}=", "plain"),
            ("10%\r20%\r\ndone\r\n", "10%\n20%\ndone\n"),
            ("a\u{0}b\u{8}c\u{7f}d\u{85}e\tf", "abcde\tf"),
            ("\u{9b}31mred", "red"),
            ("cut \u{1b}[31", "cut "),
            ("ü 🏔", "ü 🏔"),
        ] {
            assert_eq!(plain(raw.as_bytes()), expected, "{raw:?}");
        }
        assert_eq!(plain(b"\xff\xfeok"), "\u{fffd}\u{fffd}ok");
    }

    #[test]
    fn long_output_keeps_its_beginning_and_its_end() {
        let lines: String = (0..10_000).map(|line| format!("line {line}\n")).collect();
        let (text, omitted) = render_output(lines.as_bytes(), b"", lines.len() as u64, End::Exited(2));
        assert!(text.starts_with("line 0\n") && text.ends_with("line 9999\n[exit code 2]"));
        assert!(text.contains(&format!("[… {omitted} bytes left out …]")));
        assert_eq!(omitted, (lines.len() - MAX_OUTPUT_BYTES) as u64);
        let (text, omitted) = render_output(b"head\n", b"tail", 1_000_000_009, End::Exited(0));
        assert_eq!(
            (text.as_str(), omitted),
            ("head\n[… 1000000000 bytes left out …]\ntail\n[exit code 0]", 1_000_000_000)
        );
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(32))]
        #[test]
        fn any_bytes_are_shown_within_the_bound(
            head in prop::collection::vec(any::<u8>(), 0..40_000),
            tail in prop::collection::vec(any::<u8>(), 0..40_000),
            lost in 0u64..1_000_000,
        ) {
            let total = (head.len() + tail.len()) as u64 + lost;
            let (text, omitted) = render_output(&head, &tail, total, End::Exited(0));
            prop_assert!(text.len() <= MAX_OUTPUT_BYTES + 128);
            prop_assert!(omitted >= lost && omitted <= total);
            prop_assert!(!text.chars().any(|c| c.is_control() && c != '\n' && c != '\t'));
        }
    }
}
