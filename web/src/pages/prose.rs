//! Light markup (headings, lists, code, emphasis) read into blocks, so that templates escape every word themselves.
//!
//! What a model or a user wrote is shown through this; so are the pages of `docs/errors/`. It is a reader's aid and no
//! Markdown engine: whatever it does not know stays the text it was, and HTML in it stays text.

use serde::Serialize;

/// A block of prose.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(tag = "kind", rename_all = "kebab-case")]
pub enum Block {
    /// A heading.
    Heading {
        /// 1 to 6.
        level: usize,
        /// Its words.
        spans: Vec<Span>,
    },
    /// A paragraph; line breaks in it mean what they say.
    Paragraph {
        /// Its words.
        spans: Vec<Span>,
    },
    /// A list.
    List {
        /// Whether it is numbered.
        ordered: bool,
        /// Its entries.
        items: Vec<Vec<Span>>,
    },
    /// Code, to be shown as it is.
    Code {
        /// The text.
        text: String,
    },
}

/// A run of words of one kind.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Span {
    /// What kind.
    pub kind: SpanKind,
    /// The words.
    pub text: String,
    /// Where a link leads.
    pub href: Option<String>,
}

/// The kinds of [`Span`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum SpanKind {
    /// Plain words.
    Text,
    /// Code within a sentence.
    Code,
    /// Words that matter.
    Strong,
    /// A link.
    Link,
}

/// Whether links are made. Text of a model or a user gets none: it could lead anywhere.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Links {
    /// Our own documentation.
    Shown,
    /// Anybody's words.
    AsText,
}

/// Most blocks of one text; what follows becomes one last paragraph.
pub const MAX_BLOCKS: usize = 200;

/// Reads a text into blocks.
pub fn read(text: &str, links: Links) -> Vec<Block> {
    let mut reader = Reader { links, blocks: Vec::new(), open: Open::Nothing };
    for line in text.lines() {
        reader.line(line);
    }
    reader.close();
    reader.blocks
}

/// The block whose end has not been seen.
enum Open {
    Nothing,
    Paragraph(Vec<String>),
    List { ordered: bool, items: Vec<String> },
    Code { lines: Vec<String> },
}

struct Reader {
    links: Links,
    blocks: Vec<Block>,
    open: Open,
}

impl Reader {
    fn line(&mut self, line: &str) {
        let trimmed = line.trim();
        if let Open::Code { lines } = &mut self.open {
            if trimmed.starts_with("```") {
                self.close();
            } else {
                lines.push(line.to_owned());
            }
            return;
        }
        if self.blocks.len() >= MAX_BLOCKS {
            self.continue_paragraph(line);
        } else if trimmed.starts_with("```") {
            self.close();
            self.open = Open::Code { lines: Vec::new() };
        } else if trimmed.is_empty() {
            self.close();
        } else if let Some((level, words)) = heading(trimmed) {
            self.close();
            self.blocks.push(Block::Heading { level, spans: spans(words, self.links) });
        } else if let Some((ordered, words)) = list_item(trimmed) {
            match &mut self.open {
                Open::List { ordered: open, items } if *open == ordered => items.push(words.to_owned()),
                Open::Nothing | Open::Paragraph(_) | Open::List { .. } | Open::Code { .. } => {
                    self.close();
                    self.open = Open::List { ordered, items: vec![words.to_owned()] };
                }
            }
        } else {
            match &mut self.open {
                // An indented line goes on with the entry above it.
                Open::List { items, .. } if line.starts_with(' ') => {
                    if let Some(item) = items.last_mut() {
                        item.push(' ');
                        item.push_str(trimmed);
                    }
                }
                Open::Nothing | Open::Paragraph(_) | Open::List { .. } | Open::Code { .. } => {
                    self.continue_paragraph(line);
                }
            }
        }
    }

    fn continue_paragraph(&mut self, line: &str) {
        if let Open::Paragraph(lines) = &mut self.open {
            lines.push(line.trim_end().to_owned());
        } else {
            self.close();
            self.open = Open::Paragraph(vec![line.trim_end().to_owned()]);
        }
    }

    fn close(&mut self) {
        match std::mem::replace(&mut self.open, Open::Nothing) {
            Open::Nothing => {}
            Open::Paragraph(lines) => {
                // Our own pages are wrapped in the source; other people's line breaks are meant.
                let glue = if self.links == Links::Shown { " " } else { "\n" };
                self.blocks.push(Block::Paragraph { spans: spans(&lines.join(glue), self.links) });
            }
            Open::List { ordered, items } => {
                let items = items.iter().map(|item| spans(item, self.links)).collect();
                self.blocks.push(Block::List { ordered, items });
            }
            Open::Code { lines } => self.blocks.push(Block::Code { text: lines.join("\n") }),
        }
    }
}

fn heading(line: &str) -> Option<(usize, &str)> {
    let level = line.bytes().take_while(|byte| *byte == b'#').count();
    let words = line.get(level..)?.strip_prefix(' ')?;
    (1..=6).contains(&level).then(|| (level, words.trim()))
}

fn list_item(line: &str) -> Option<(bool, &str)> {
    if let Some(words) = line.strip_prefix("- ").or_else(|| line.strip_prefix("* ")) {
        return Some((false, words.trim()));
    }
    let digits = line.bytes().take_while(u8::is_ascii_digit).count();
    let words = line.get(digits..)?.strip_prefix(". ")?;
    (1..=3).contains(&digits).then(|| (true, words.trim()))
}

fn span(kind: SpanKind, text: &str) -> Span {
    Span { kind, text: text.to_owned(), href: None }
}

fn spans(text: &str, links: Links) -> Vec<Span> {
    let mut spans = Vec::new();
    let mut plain = 0;
    let mut at = 0;
    while at < text.len() {
        let rest = &text[at..];
        let found = if let Some(rest) = rest.strip_prefix('`') {
            enclosed(rest, "`").map(|code| (span(SpanKind::Code, code), code.len() + 2))
        } else if let Some(rest) = rest.strip_prefix("**") {
            enclosed(rest, "**").map(|words| (span(SpanKind::Strong, words), words.len() + 4))
        } else if links == Links::Shown && rest.starts_with('[') {
            link(rest)
        } else {
            None
        };
        match found {
            Some((found, length)) => {
                if plain < at {
                    spans.push(span(SpanKind::Text, &text[plain..at]));
                }
                spans.push(found);
                at += length;
                plain = at;
            }
            None => at += rest.chars().next().map_or(1, char::len_utf8),
        }
    }
    if plain < text.len() {
        spans.push(span(SpanKind::Text, &text[plain..]));
    }
    spans
}

/// Longest run of emphasised words or inline code, in bytes: looking for its end must not take quadratic time.
const MAX_SPAN: usize = 400;

fn enclosed<'a>(rest: &'a str, end: &str) -> Option<&'a str> {
    let (near, _) = super::format::head_of(rest, MAX_SPAN);
    let inside = &near[..near.find(end)?];
    (!inside.trim().is_empty() && !inside.contains('\n')).then_some(inside)
}

fn link(rest: &str) -> Option<(Span, usize)> {
    let (near, _) = super::format::head_of(rest, MAX_SPAN);
    let (words, after) = near.strip_prefix('[')?.split_once("](")?;
    let (href, _) = after.split_once(')')?;
    let safe = href.starts_with("https://") || (href.starts_with('/') && !href.starts_with("//"));
    let length = words.len() + href.len() + 4;
    safe.then(|| (Span { kind: SpanKind::Link, text: words.replace('`', ""), href: Some(href.to_owned()) }, length))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn blocks_are_told_apart() {
        let blocks =
            read("# Title\n\nOne `code` and **bold**.\nSame.\n\n- a\n- b\n  more\n\n```sh\nls <x>\n```", Links::AsText);
        assert_eq!(blocks.len(), 4, "{blocks:?}");
        assert!(matches!(&blocks[0], Block::Heading { level: 1, .. }));
        let Block::Paragraph { spans } = &blocks[1] else { panic!("{blocks:?}") };
        let kinds: Vec<_> = spans.iter().map(|span| span.kind).collect();
        assert_eq!(kinds, [SpanKind::Text, SpanKind::Code, SpanKind::Text, SpanKind::Strong, SpanKind::Text]);
        let Block::List { items, .. } = &blocks[2] else { panic!("{blocks:?}") };
        assert_eq!(items[1][0].text, "b more");
        assert_eq!(blocks[3], Block::Code { text: "ls <x>".to_owned() });
    }

    #[test]
    fn a_models_link_stays_text_and_a_script_link_always_does() {
        for (text, links) in [
            ("[x](https://evil.example)", Links::AsText),
            ("[x](javascript:alert(1))", Links::Shown),
            ("[x](//evil.example)", Links::Shown),
        ] {
            let blocks = read(text, links);
            let Block::Paragraph { spans } = &blocks[0] else { panic!("{blocks:?}") };
            assert!(spans.iter().all(|span| span.kind == SpanKind::Text), "{text}: {spans:?}");
        }
    }

    #[test]
    fn unclosed_marks_stay_text() {
        let blocks = read("a `b and **c\n\n```\nopen", Links::AsText);
        assert_eq!(blocks[0], Block::Paragraph { spans: vec![span(SpanKind::Text, "a `b and **c")] });
        assert_eq!(blocks[1], Block::Code { text: "open".to_owned() });
    }
}
