//! What a conversation holds besides words: images, which have a bound of their own, and what has no bound at all.
//!
//! A token is never shorter than a byte of text, so the bytes of a request bound what it can be read as; unless it refers to
//! something that is not in it, or carries something that is read as other than its bytes. Every part is looked at; one
//! that this version does not know is refused, because its cost could not be bounded.

use serde::Deserialize;
use serde::de::IgnoredAny;
use serde_json::value::RawValue;

use super::scan::Text;
use crate::model::CacheWrites;

/// What was found.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Contents {
    /// Images, wherever they come from.
    pub images: u64,
    /// The bytes of the request that are images, not text.
    pub image_bytes: u64,
    /// The cache marks.
    pub writes: CacheWrites,
}

impl Default for Contents {
    fn default() -> Self {
        Self { images: 0, image_bytes: 0, writes: CacheWrites::None }
    }
}

/// Content can hold content; no dialect nests it deeper than a document in a tool's result.
const MAX_DEPTH: u32 = 4;

/// A sentence for the caller.
pub(super) type Refused = String;

fn unbounded(what: &str, instead: &str) -> Refused {
    format!("{what} cannot be bounded in tokens, so no money can be reserved for it; {instead}")
}

fn unknown(kind: &str) -> Refused {
    let kind: String = kind.chars().take(80).collect();
    unbounded(&format!("A part of type {kind:?}"), "leave it out, or send its content as text")
}

const AS_TEXT: &str = "send its text instead";

/// A string, or parts.
enum Content<'a> {
    Words,
    Parts(Vec<Part<'a>>),
}

/// A part of any dialect's content, as far as it matters here.
#[derive(Deserialize)]
struct Part<'a> {
    #[serde(borrow, rename = "type")]
    kind: Option<Text<'a>>,
    #[serde(borrow)]
    source: Option<&'a RawValue>,
    #[serde(borrow)]
    content: Option<&'a RawValue>,
    #[serde(borrow)]
    image_url: Option<&'a RawValue>,
    file_id: Option<IgnoredAny>,
    #[serde(borrow)]
    cache_control: Option<CacheControl<'a>>,
}

/// A mark at which a provider writes to its cache.
#[derive(Deserialize)]
pub(super) struct CacheControl<'a> {
    #[serde(borrow)]
    ttl: Option<Text<'a>>,
}

impl Contents {
    /// Takes note of a mark.
    pub fn mark(&mut self, mark: Option<&CacheControl<'_>>) {
        let Some(mark) = mark else { return };
        match &mark.ttl {
            Some(Text(ttl)) if ttl != "5m" => self.writes = CacheWrites::Any,
            _ if self.writes == CacheWrites::None => self.writes = CacheWrites::FiveMinutes,
            _ => {}
        }
    }

    /// Anthropic's `messages`.
    pub fn messages(&mut self, raw: &str, searched: bool) -> Result<(), Refused> {
        #[derive(Deserialize)]
        struct Message<'a> {
            #[serde(borrow)]
            content: Option<&'a RawValue>,
        }
        let messages: Vec<Message<'_>> = parse(raw, "messages")?;
        for content in messages.into_iter().filter_map(|message| message.content) {
            self.anthropic(content.get(), searched, 0)?;
        }
        Ok(())
    }

    /// Anthropic's content: `system`, a message's, a tool result's.
    pub fn anthropic(&mut self, raw: &str, searched: bool, depth: u32) -> Result<(), Refused> {
        if depth > MAX_DEPTH {
            return Err(format!("content is nested deeper than {MAX_DEPTH} levels"));
        }
        let Content::Parts(parts) = content(raw)? else { return Ok(()) };
        for part in parts {
            self.mark(part.cache_control.as_ref());
            let kind = part.kind.as_ref().map_or("", |kind| &*kind.0);
            match kind {
                "text" | "thinking" | "redacted_thinking" | "tool_use" | "server_tool_use" | "tool_reference" => {}
                "tool_result" | "search_result" => {
                    if let Some(inner) = part.content {
                        self.anthropic(inner.get(), searched, depth + 1)?;
                    }
                }
                "image" => self.anthropic_image(part.source)?,
                "document" => self.document(part.source, searched, depth)?,
                // Its text is in it, encrypted: not shorter than what it says.
                "web_search_tool_result" if searched => {}
                _ => return Err(unknown(kind)),
            }
        }
        Ok(())
    }

    fn anthropic_image(&mut self, source: Option<&RawValue>) -> Result<(), Refused> {
        let source: Source<'_> = source.map_or(Ok(Source::default()), |source| parse(source.get(), "source"))?;
        match source.kind.as_ref().map_or("", |kind| &*kind.0) {
            "base64" => self.image(source.data.map_or(0, |data| data.get().len())),
            "url" => self.image(0),
            _ => return Err(unbounded("An image by file id", "send it as base64")),
        }
        Ok(())
    }

    fn image(&mut self, bytes: usize) {
        self.images = self.images.saturating_add(1);
        self.image_bytes = self.image_bytes.saturating_add(bytes as u64);
    }

    fn document(&mut self, source: Option<&RawValue>, searched: bool, depth: u32) -> Result<(), Refused> {
        let source: Source<'_> = source.map_or(Ok(Source::default()), |source| parse(source.get(), "source"))?;
        match (source.kind.as_ref().map_or("", |kind| &*kind.0), source.content) {
            ("text", _) => Ok(()),
            ("content", Some(inner)) => self.anthropic(inner.get(), searched, depth + 1),
            _ => Err(unbounded("A document that is not text", AS_TEXT)),
        }
    }

    /// The messages of Chat Completions.
    pub fn chat(&mut self, raw: &str) -> Result<(), Refused> {
        #[derive(Deserialize)]
        struct Message<'a> {
            #[serde(borrow)]
            content: Option<&'a RawValue>,
            #[serde(borrow)]
            audio: Option<&'a RawValue>,
        }
        let messages: Vec<Message<'_>> = parse(raw, "messages")?;
        for message in messages {
            if message.audio.is_some_and(|audio| audio.get() != "null") {
                return Err(unbounded("Earlier audio", "send what was said as text"));
            }
            let Some(raw) = message.content else { continue };
            let Content::Parts(parts) = content(raw.get())? else { continue };
            for part in parts {
                self.mark(part.cache_control.as_ref());
                match part.kind.as_ref().map_or("", |kind| &*kind.0) {
                    "text" | "refusal" | "thinking" | "reasoning" => {}
                    "image_url" => self.openai_image(&part)?,
                    "file" => return Err(unbounded("A file", AS_TEXT)),
                    "input_audio" => return Err(unbounded("Audio", "send what was said as text")),
                    kind => return Err(unknown(kind)),
                }
            }
        }
        Ok(())
    }

    /// `image_url` is a string, or an object with one.
    fn openai_image(&mut self, part: &Part<'_>) -> Result<(), Refused> {
        #[derive(Deserialize)]
        struct Url<'a> {
            #[serde(borrow)]
            url: &'a RawValue,
        }
        if part.file_id.is_some() {
            return Err(unbounded("An image by file id", "send it as a data URL"));
        }
        let Some(raw) = part.image_url.map(RawValue::get) else {
            return Err("an image has no image_url".into());
        };
        let url = if raw.starts_with('{') { parse::<Url<'_>>(raw, "image_url")?.url.get() } else { raw };
        self.image(if url.starts_with("\"data:") { url.len() } else { 0 });
        Ok(())
    }

    /// The `input` of Responses.
    pub fn responses(&mut self, raw: &str, searched: bool) -> Result<(), Refused> {
        #[derive(Deserialize)]
        struct Item<'a> {
            #[serde(borrow, rename = "type")]
            kind: Option<Text<'a>>,
            #[serde(borrow)]
            content: Option<&'a RawValue>,
            #[serde(borrow)]
            output: Option<&'a RawValue>,
        }
        if raw.starts_with('"') {
            return Ok(());
        }
        let items: Vec<Item<'_>> = parse(raw, "input")?;
        for item in items {
            match item.kind.as_ref().map_or("message", |kind| &*kind.0) {
                "message" | "reasoning" => {
                    if let Some(inner) = item.content {
                        self.response_parts(inner.get())?;
                    }
                }
                "function_call" | "custom_tool_call" | "local_shell_call" | "shell_call" | "apply_patch_call"
                | "tool_search_call" => {}
                "function_call_output"
                | "custom_tool_call_output"
                | "local_shell_call_output"
                | "shell_call_output"
                | "apply_patch_call_output"
                | "tool_search_output" => {
                    if let Some(output) = item.output {
                        self.response_parts(output.get())?;
                    }
                }
                "web_search_call" if searched => {}
                "item_reference" => {
                    return Err(unbounded("A reference to a stored item", "send the item itself, with store: false"));
                }
                kind => return Err(unknown(kind)),
            }
        }
        Ok(())
    }

    fn response_parts(&mut self, raw: &str) -> Result<(), Refused> {
        // What a local shell printed may be an object of its own making.
        if raw.starts_with('{') {
            return Ok(());
        }
        let Content::Parts(parts) = content(raw)? else { return Ok(()) };
        for part in parts {
            match part.kind.as_ref().map_or("", |kind| &*kind.0) {
                "input_text" | "output_text" | "text" | "refusal" | "reasoning_text" | "summary_text" => {}
                // The exit of a shell's command, beside its text.
                "" => {}
                "input_image" => self.openai_image(&part)?,
                "input_file" => return Err(unbounded("A file", AS_TEXT)),
                "input_audio" => return Err(unbounded("Audio", "send what was said as text")),
                kind => return Err(unknown(kind)),
            }
        }
        Ok(())
    }
}

#[derive(Deserialize, Default)]
struct Source<'a> {
    #[serde(borrow, rename = "type")]
    kind: Option<Text<'a>>,
    #[serde(borrow)]
    data: Option<&'a RawValue>,
    #[serde(borrow)]
    content: Option<&'a RawValue>,
}

fn parse<'a, T: Deserialize<'a>>(raw: &'a str, field: &str) -> Result<T, Refused> {
    serde_json::from_str(raw).map_err(|error| format!("{field} is not what the API documents: {error}"))
}

fn content(raw: &str) -> Result<Content<'_>, Refused> {
    match raw.as_bytes().first() {
        Some(b'[') => parse(raw, "content").map(Content::Parts),
        Some(b'"' | b'n') => Ok(Content::Words),
        _ => Err("content is neither a string nor a list of parts".into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    type Walk = fn(&mut Contents, &str) -> Result<(), Refused>;

    const ANTHROPIC: Walk = |contents, raw| contents.messages(raw, false);
    const CHAT: Walk = |contents, raw| contents.chat(raw);
    const RESPONSES: Walk = |contents, raw| contents.responses(raw, false);

    #[test]
    fn images_are_counted_apart_from_the_text() {
        for (what, walk, raw, images, bytes) in [
            ("words", ANTHROPIC, r#"[{"role":"user","content":"hi"}]"#, 0, 0),
            ("base64", ANTHROPIC, r#"[{"content":[{"type":"image","source":{"type":"base64","data":"AAAA"}}]}]"#, 1, 6),
            ("url", ANTHROPIC, r#"[{"content":[{"type":"image","source":{"type":"url","url":"u"}}]}]"#, 1, 0),
            (
                "in a tool's result",
                ANTHROPIC,
                r#"[{"content":[{"type":"tool_result","content":[{"type":"image","source":{"type":"base64","data":"AA"}}]}]}]"#,
                1,
                4,
            ),
            (
                "what a tool was given is no image",
                ANTHROPIC,
                r#"[{"content":[{"type":"tool_use","input":{"type":"image","source":{"type":"file"}}}]}]"#,
                0,
                0,
            ),
            ("chat", CHAT, r#"[{"content":[{"type":"image_url","image_url":{"url":"data:AA"}}]}]"#, 1, 9),
            ("chat, by url", CHAT, r#"[{"content":[{"type":"image_url","image_url":{"url":"http://x"}}]}]"#, 1, 0),
            ("responses", RESPONSES, r#"[{"content":[{"type":"input_image","image_url":"data:A"}]}]"#, 1, 8),
            (
                "a tool's output",
                RESPONSES,
                r#"[{"type":"function_call_output","output":[{"type":"input_image","image_url":"data:A"}]}]"#,
                1,
                8,
            ),
            ("a string", RESPONSES, r#""hi""#, 0, 0),
        ] {
            let mut contents = Contents::default();
            walk(&mut contents, raw).expect(what);
            assert_eq!((contents.images, contents.image_bytes), (images, bytes), "{what}");
        }
    }

    #[test]
    fn what_has_no_bound_is_refused_with_a_remedy() {
        for (walk, raw, expected) in [
            (ANTHROPIC, r#"[{"content":[{"type":"document","source":{"type":"base64"}}]}]"#, "send its text"),
            (ANTHROPIC, r#"[{"content":[{"type":"document","source":{"type":"url"}}]}]"#, "send its text"),
            (ANTHROPIC, r#"[{"content":[{"type":"d\u006fcument","source":{"type":"file"}}]}]"#, "send its text"),
            (ANTHROPIC, r#"[{"content":[{"type":"text","type":"document"}]}]"#, "duplicate field"),
            (ANTHROPIC, r#"[{"content":[{"type":"image","source":{"type":"file"}}]}]"#, "as base64"),
            (ANTHROPIC, r#"[{"content":[{"type":"container_upload"}]}]"#, "container_upload"),
            (ANTHROPIC, r#"[{"content":[{"type":"web_search_tool_result"}]}]"#, "web_search_tool_result"),
            (
                ANTHROPIC,
                r#"[{"content":[{"type":"tool_result","content":[{"type":"document","source":{"type":"url"}}]}]}]"#,
                "send its text",
            ),
            (ANTHROPIC, r#"[{"content":{"type":"text"}}]"#, "neither a string nor a list"),
            (ANTHROPIC, r#"{"content":"x"}"#, "messages is not what the API documents"),
            (CHAT, r#"[{"content":[{"type":"file","file":{}}]}]"#, "A file"),
            (CHAT, r#"[{"content":[{"type":"input_audio"}]}]"#, "Audio"),
            (CHAT, r#"[{"content":"", "audio": {"id": "a"}}]"#, "audio"),
            (RESPONSES, r#"[{"type":"item_reference","id":"x"}]"#, "stored item"),
            (RESPONSES, r#"[{"content":[{"type":"input_file","file_id":"f"}]}]"#, "A file"),
            (RESPONSES, r#"[{"content":[{"type":"input_image","file_id":"f"}]}]"#, "file id"),
            (RESPONSES, r#"[{"type":"web_search_call"}]"#, "web_search_call"),
            (RESPONSES, r#"[{"type":"mcp_call"}]"#, "mcp_call"),
        ] {
            let error = walk(&mut Contents::default(), raw).expect_err(raw);
            assert!(error.contains(expected), "{raw}: {error}");
        }
    }

    #[test]
    fn the_dearest_mark_counts() {
        for (marks, expected) in [
            ("", CacheWrites::None),
            (r#", "cache_control": {"type": "ephemeral"}"#, CacheWrites::FiveMinutes),
            (r#", "cache_control": {"type": "ephemeral", "ttl": "5m"}"#, CacheWrites::FiveMinutes),
            (r#", "cache_\u0063ontrol": {"type": "ephemeral", "ttl": "1h"}"#, CacheWrites::Any),
            (r#", "cache_control": null"#, CacheWrites::None),
        ] {
            let mut contents = Contents::default();
            let raw = format!(r#"[{{"type": "text", "text": "cache_control"{marks}}}]"#);
            contents.anthropic(&raw, false, 0).expect(marks);
            assert_eq!(contents.writes, expected, "{marks}");
            if expected == CacheWrites::Any {
                contents.anthropic(r#"[{"type":"text","cache_control":{}}]"#, false, 0).expect("known");
                assert_eq!(contents.writes, CacheWrites::Any, "a shorter one does not undo it");
            }
        }
    }
}
