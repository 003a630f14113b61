//! Splits a server-sent event stream into events, byte by byte, whatever the chunks it arrives in.
//!
//! Written to the WHATWG HTML standard, section 9.2 ("server-sent events"): lines end in LF, CRLF or CR, a line that
//! starts with a colon is a comment, an empty line ends the event.

use bytes::BytesMut;

/// The longest line, and the longest event, that is read. A provider's largest event is one delta; this is far above.
pub const MAX_EVENT_BYTES: usize = 4 * 1024 * 1024;

/// One event.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Event {
    /// The `event:` field; empty when there was none.
    pub name: String,
    /// The `data:` lines, joined by line feeds.
    pub data: Vec<u8>,
}

/// The stream holds a line or an event longer than [`MAX_EVENT_BYTES`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TooLong;

/// The state between two chunks.
#[derive(Debug, Default)]
pub struct Scanner {
    line: BytesMut,
    name: Vec<u8>,
    data: Vec<u8>,
    has_data: bool,
    after_carriage_return: bool,
    started: bool,
}

impl Scanner {
    /// Reads a chunk and appends the events it completes. What follows an error is not to be read.
    pub fn push(&mut self, mut chunk: &[u8], events: &mut Vec<Event>) -> Result<(), TooLong> {
        while !chunk.is_empty() {
            if std::mem::take(&mut self.after_carriage_return) && chunk[0] == b'\n' {
                chunk = &chunk[1..];
                continue;
            }
            match chunk.iter().position(|byte| matches!(byte, b'\n' | b'\r')) {
                Some(end) => {
                    self.extend_line(&chunk[..end])?;
                    self.after_carriage_return = chunk[end] == b'\r';
                    chunk = &chunk[end + 1..];
                    self.end_line(events)?;
                }
                None => {
                    self.extend_line(chunk)?;
                    return Ok(());
                }
            }
        }
        Ok(())
    }

    fn extend_line(&mut self, bytes: &[u8]) -> Result<(), TooLong> {
        if self.line.len() + bytes.len() > MAX_EVENT_BYTES {
            return Err(TooLong);
        }
        self.line.extend_from_slice(bytes);
        Ok(())
    }

    fn end_line(&mut self, events: &mut Vec<Event>) -> Result<(), TooLong> {
        let line = self.line.split();
        let line = if self.started { &line[..] } else { line.strip_prefix("\u{feff}".as_bytes()).unwrap_or(&line[..]) };
        self.started = true;
        if line.is_empty() {
            let (name, data) = (std::mem::take(&mut self.name), std::mem::take(&mut self.data));
            if std::mem::take(&mut self.has_data) {
                events.push(Event { name: String::from_utf8_lossy(&name).into_owned(), data });
            }
            return Ok(());
        }
        let colon = line.iter().position(|&byte| byte == b':');
        let (field, value) = match colon {
            Some(at) => (&line[..at], line[at + 1..].strip_prefix(b" ").unwrap_or(&line[at + 1..])),
            None => (line, &[][..]),
        };
        match field {
            b"data" => {
                if self.data.len() + value.len() + 1 > MAX_EVENT_BYTES {
                    return Err(TooLong);
                }
                if std::mem::replace(&mut self.has_data, true) {
                    self.data.push(b'\n');
                }
                self.data.extend_from_slice(value);
            }
            b"event" => self.name = value.to_vec(),
            // A comment, `id`, `retry`, or something newer than this program.
            _ => {}
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn scan(chunks: &[&[u8]]) -> Vec<(String, String)> {
        let (mut scanner, mut events) = (Scanner::default(), Vec::new());
        for chunk in chunks {
            scanner.push(chunk, &mut events).expect("short enough");
        }
        events.into_iter().map(|event| (event.name, String::from_utf8(event.data).expect("UTF-8"))).collect()
    }

    #[test]
    fn any_chunking_and_any_line_end_gives_the_same_events() {
        let text = "\u{feff}event: a\ndata: {\"t\":\"Zürich 🏔\"}\n\n: comment\n\ndata:one\ndata: two\ndata\nid: 7\n\nevent: x\n\nretry: 1\ndata: last\n\n";
        let expected = vec![
            ("a".to_owned(), "{\"t\":\"Zürich 🏔\"}".to_owned()),
            (String::new(), "one\ntwo\n".to_owned()),
            (String::new(), "last".to_owned()),
        ];
        for line_end in ["\n", "\r\n", "\r"] {
            let bytes = text.replace('\n', line_end).into_bytes();
            for size in 1..bytes.len() {
                assert_eq!(scan(&bytes.chunks(size).collect::<Vec<_>>()), expected, "{line_end:?} by {size}");
            }
        }
    }

    #[test]
    fn an_event_without_its_empty_line_is_not_one() {
        assert_eq!(scan(&[b"data: cut"]), []);
        assert_eq!(scan(&[b"data: cut\n"]), []);
    }

    #[test]
    fn a_line_or_an_event_without_end_is_refused_in_bounded_memory() {
        let (mut scanner, mut events) = (Scanner::default(), Vec::new());
        let chunk = vec![b'x'; 64 * 1024];
        let mut pushed = 0;
        while scanner.push(&chunk, &mut events).is_ok() {
            pushed += chunk.len();
            assert!(pushed <= MAX_EVENT_BYTES);
        }
        assert_eq!(pushed, MAX_EVENT_BYTES);

        let (mut scanner, mut pushed) = (Scanner::default(), 0);
        let line = [b"data: ".as_slice(), &chunk, b"\n"].concat();
        while scanner.push(&line, &mut events).is_ok() {
            pushed += chunk.len();
            assert!(pushed <= MAX_EVENT_BYTES);
        }
        assert!(events.is_empty());
    }
}
