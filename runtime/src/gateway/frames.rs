//! Cuts a server-sent event stream into whole events without changing a byte of it.
//!
//! What is passed on is passed on as it came, event by event, so that a keep-alive or an error can always be put between
//! two of them. Lines end in LF, CRLF or CR; an empty line ends the event (WHATWG HTML standard, section 9.2).

use std::borrow::Cow;

use bytes::{Bytes, BytesMut};

/// The longest event. The closing event of OpenAI's Responses repeats the whole reply, and the instructions with it.
pub(super) const MAX_FRAME_BYTES: usize = 16 * 1024 * 1024;

/// An event is longer than [`MAX_FRAME_BYTES`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct TooLong;

/// The state between two chunks.
#[derive(Debug, Default)]
pub(super) struct Frames {
    buffer: BytesMut,
    /// So much of the buffer was looked at.
    scanned: usize,
    /// Whether the line that is being read has a character yet.
    line_has_text: bool,
    /// A CR ended the last line: an LF right after it belongs to it.
    after_carriage_return: bool,
}

impl Frames {
    /// Takes a chunk.
    pub fn push(&mut self, chunk: &[u8]) -> Result<(), TooLong> {
        if self.buffer.len() + chunk.len() > MAX_FRAME_BYTES {
            return Err(TooLong);
        }
        self.buffer.extend_from_slice(chunk);
        Ok(())
    }

    /// The next whole event, with the empty line that ends it.
    pub fn next(&mut self) -> Option<Bytes> {
        while self.scanned < self.buffer.len() {
            let byte = self.buffer[self.scanned];
            if !matches!(byte, b'\n' | b'\r') {
                // To the end of the line in one go.
                let rest = &self.buffer[self.scanned..];
                let text = rest.iter().position(|byte| matches!(byte, b'\n' | b'\r')).unwrap_or(rest.len());
                self.scanned += text;
                self.line_has_text = true;
                self.after_carriage_return = false;
                continue;
            }
            self.scanned += 1;
            if byte == b'\n' && std::mem::take(&mut self.after_carriage_return) {
                continue;
            }
            self.after_carriage_return = byte == b'\r';
            if !std::mem::take(&mut self.line_has_text) {
                if self.after_carriage_return && self.buffer.get(self.scanned) == Some(&b'\n') {
                    self.scanned += 1;
                    self.after_carriage_return = false;
                }
                let frame = self.buffer.split_to(self.scanned).freeze();
                self.scanned = 0;
                return Some(frame);
            }
        }
        None
    }

    /// What has come of an event that is not whole.
    pub fn rest(&mut self) -> Bytes {
        self.scanned = 0;
        self.buffer.split().freeze()
    }
}

/// The data of an event: its `data:` lines, joined by line feeds. `None`: a comment, or nothing at all.
pub(super) fn data(frame: &[u8]) -> Option<Cow<'_, [u8]>> {
    let frame = frame.strip_prefix("\u{feff}".as_bytes()).unwrap_or(frame);
    let mut found: Option<Cow<'_, [u8]>> = None;
    for line in frame.split(|byte| matches!(byte, b'\n' | b'\r')) {
        let Some(value) = line.strip_prefix(b"data") else { continue };
        let value = match value {
            [] => value,
            [b':', b' ', value @ ..] | [b':', value @ ..] => value,
            // Some other field.
            _ => continue,
        };
        found = Some(match found {
            None => Cow::Borrowed(value),
            Some(before) => {
                let mut joined = before.into_owned();
                joined.push(b'\n');
                joined.extend_from_slice(value);
                Cow::Owned(joined)
            }
        });
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    fn frames(chunks: &[&[u8]]) -> (Vec<Bytes>, Bytes) {
        let (mut frames, mut found) = (Frames::default(), Vec::new());
        for chunk in chunks {
            frames.push(chunk).expect("short enough");
            found.extend(std::iter::from_fn(|| frames.next()));
        }
        (found, frames.rest())
    }

    #[test]
    fn any_chunking_and_any_line_end_gives_the_same_events_and_the_same_bytes() {
        let text = "\u{feff}event: a\ndata: {\"t\":\"Zürich 🏔\"}\n\n: comment\n\ndata:one\ndata: two\ndata\nid: 7\n\nevent: x\n\ndatabase: no\n\ndata: last\n\ndata: cut";
        let expected = ["{\"t\":\"Zürich 🏔\"}", "one\ntwo\n", "last"];
        for line_end in ["\n", "\r\n", "\r"] {
            let bytes = text.replace('\n', line_end).into_bytes();
            for size in 1..bytes.len() {
                let (found, rest) = frames(&bytes.chunks(size).collect::<Vec<_>>());
                let told: Vec<_> = found.iter().filter_map(|frame| data(frame)).map(|data| data.into_owned()).collect();
                let told: Vec<_> = told.iter().map(|data| std::str::from_utf8(data).expect("UTF-8")).collect();
                assert_eq!(told, expected, "{line_end:?} by {size}");
                let all: Vec<u8> = found.iter().chain([&rest]).flat_map(|frame| frame.to_vec()).collect();
                assert_eq!(all, bytes, "{line_end:?} by {size}");
            }
        }
    }

    #[test]
    fn an_event_without_end_is_refused_in_bounded_memory() {
        let (mut frames, chunk) = (Frames::default(), vec![b'x'; 1 << 20]);
        let mut pushed = 0;
        while frames.push(&chunk).is_ok() {
            assert_eq!(frames.next(), None);
            pushed += chunk.len();
        }
        assert_eq!(pushed, MAX_FRAME_BYTES);
    }
}
