//! The head of an HTTP/1.1 message, read so strictly that nobody behind us can read it otherwise (RFC 9112).
//!
//! Lines end in CRLF and in nothing else, none is continued, no name has a space, and the length of the body is said once.
//! What is sent on is written anew out of what was read.

use super::authority::Authority;
use super::reason::Reason;

/// The longest head, first line and all.
pub const MAX_HEAD: usize = 32 * 1024;

/// The longest first line.
pub const MAX_FIRST_LINE: usize = 8 * 1024;

/// Most lines of a head after its first.
pub const MAX_FIELDS: usize = 100;

/// The methods that are passed on. TRACE would echo what it is sent, and CONNECT is another matter.
const METHODS: [&str; 7] = ["GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"];

/// Fields that speak of one connection and not of the message (RFC 9110, 7.6.1), and those that only a proxy is meant to read.
const HOP_BY_HOP: [&str; 11] = [
    "connection",
    // A field of this name belongs to the connection for whoever reads the `connection: close` that we write.
    "close",
    "keep-alive",
    "proxy-connection",
    "proxy-authorization",
    "proxy-authenticate",
    "proxy-authentication-info",
    "te",
    "trailer",
    "upgrade",
    "http2-settings",
];

/// Fields that `Connection` must not take away: they say where a message goes and where it ends.
const KEPT: [&str; 5] = ["host", "content-length", "transfer-encoding", "expect", "authorization"];

/// The end of a head, when it is there.
pub fn end_of(bytes: &[u8]) -> Option<usize> {
    bytes.windows(4).position(|window| window == b"\r\n\r\n").map(|place| place + 4)
}

/// How a body ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Framing {
    /// There is none.
    None,
    /// After so many bytes.
    Length(u64),
    /// By its own framing.
    Chunked,
    /// With the connection; only an answer can.
    Close,
}

/// A line of a head.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Field {
    /// In lower case.
    name: String,
    value: Vec<u8>,
}

/// The lines after the first.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
struct Fields(Vec<Field>);

fn is_token(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&byte)
}

/// What may stand in a value, and in the words of a status line (RFC 9110, 5.5).
fn is_text(byte: u8) -> bool {
    byte == b'\t' || (byte >= b' ' && byte != 0x7f)
}

fn trimmed(mut bytes: &[u8]) -> &[u8] {
    while let [b' ' | b'\t', rest @ ..] | [rest @ .., b' ' | b'\t'] = bytes {
        bytes = rest;
    }
    bytes
}

/// The lines of a head, without their ends and without the empty one.
fn lines(head: &[u8], otherwise: Reason) -> Result<Vec<&[u8]>, Reason> {
    let text = head.strip_suffix(b"\r\n\r\n").ok_or(otherwise)?;
    let mut lines = Vec::new();
    let mut rest = text;
    loop {
        let end = rest.windows(2).position(|pair| pair == b"\r\n").unwrap_or(rest.len());
        let line = &rest[..end];
        // A lone CR or LF ends a line for somebody, and NUL ends a text.
        if line.iter().any(|byte| matches!(byte, b'\r' | b'\n' | 0)) {
            return Err(otherwise);
        }
        lines.push(line);
        if lines.len() > MAX_FIELDS + 1 {
            return Err(Reason::HeadTooLarge);
        }
        match rest.get(end + 2..) {
            Some(more) => rest = more,
            None => return Ok(lines),
        }
    }
}

impl Fields {
    fn read(lines: &[&[u8]], otherwise: Reason) -> Result<Self, Reason> {
        let read = |line: &&[u8]| {
            let colon = line.iter().position(|&byte| byte == b':').ok_or(otherwise)?;
            let (name, value) = (&line[..colon], trimmed(&line[colon + 1..]));
            // A line that begins with a space continues the one before: its name is no token.
            if name.is_empty() || !name.iter().copied().all(is_token) || !value.iter().copied().all(is_text) {
                return Err(otherwise);
            }
            Ok(Field { name: String::from_utf8_lossy(name).to_ascii_lowercase(), value: value.to_vec() })
        };
        lines.iter().map(read).collect::<Result<_, _>>().map(Self)
    }

    fn all<'a>(&'a self, name: &'a str) -> impl Iterator<Item = &'a [u8]> {
        self.0.iter().filter(move |field| field.name == name).map(|field| &*field.value)
    }

    /// The value of a field that comes once at most.
    fn one(&self, name: &str, otherwise: Reason) -> Result<Option<&[u8]>, Reason> {
        let mut values = self.0.iter().filter(|field| field.name == name).map(|field| &*field.value);
        let first = values.next();
        if values.next().is_some() { Err(otherwise) } else { Ok(first) }
    }

    /// Takes away what speaks of this connection alone.
    fn strip(&mut self, otherwise: Reason) -> Result<(), Reason> {
        let mut named = Vec::new();
        for value in self.all("connection") {
            for option in value.split(|&byte| byte == b',').map(trimmed).filter(|option| !option.is_empty()) {
                let option = String::from_utf8_lossy(option).to_ascii_lowercase();
                if !option.bytes().all(is_token) || KEPT.contains(&&*option) {
                    return Err(otherwise);
                }
                named.push(option);
            }
        }
        self.0.retain(|field| !HOP_BY_HOP.contains(&&*field.name) && !named.contains(&field.name));
        Ok(())
    }

    /// How the body ends, if the fields say so; in one way only.
    fn framing(&self, otherwise: Reason) -> Result<Option<Framing>, Reason> {
        let length = self.one("content-length", otherwise)?;
        let encoding = self.one("transfer-encoding", otherwise)?;
        match (length, encoding) {
            (None, None) => Ok(None),
            (Some(_), Some(_)) => Err(otherwise),
            (None, Some(value)) if value.eq_ignore_ascii_case(b"chunked") => Ok(Some(Framing::Chunked)),
            (None, Some(_)) => Err(otherwise),
            (Some(value), None) => {
                // Digits alone, and no more than a number holds: no sign, no list, no hexadecimal.
                let plain = (1..=18).contains(&value.len()) && value.iter().all(u8::is_ascii_digit);
                let text = std::str::from_utf8(value).ok().filter(|_| plain).ok_or(otherwise)?;
                text.parse().map(|length| Some(Framing::Length(length))).map_err(|_| otherwise)
            }
        }
    }

    fn write(&self, into: &mut Vec<u8>) {
        for Field { name, value } in &self.0 {
            into.extend_from_slice(name.as_bytes());
            into.extend_from_slice(b": ");
            into.extend_from_slice(value);
            into.extend_from_slice(b"\r\n");
        }
        into.extend_from_slice(b"connection: close\r\n\r\n");
    }
}

/// What a sandbox asks for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Asked {
    /// A tunnel.
    Connect(Authority),
    /// One exchange.
    Forward(Request),
}

/// A request that is passed on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Request {
    /// To whom.
    pub target: Authority,
    /// Whether the answer has no body whatever it says.
    pub is_head: bool,
    /// How its body ends.
    pub framing: Framing,
    /// The caller waits for a word before it sends the body.
    pub expects_continue: bool,
    /// What is sent in its place.
    pub head: Vec<u8>,
}

/// What of a target is shown in the record: its authority, before anything is known to be right about it.
pub fn aimed_at(head: &[u8]) -> &[u8] {
    let line = head.split(|&byte| byte == b'\n').next().unwrap_or_default();
    let target = line.split(|&byte| byte == b' ').nth(1).unwrap_or_default();
    let authority = target.windows(3).position(|window| window == b"://").map_or(target, |place| &target[place + 3..]);
    let end = authority.iter().position(|byte| b"/?#\r".contains(byte)).unwrap_or(authority.len());
    &authority[..end]
}

impl Asked {
    /// Reads a whole head.
    ///
    /// # Errors
    /// When anything about it could be read in two ways, or is not passed on.
    pub fn read(head: &[u8]) -> Result<Self, Reason> {
        let lines = lines(head, Reason::BadRequest)?;
        let (first, rest) = lines.split_first().ok_or(Reason::BadRequest)?;
        if first.len() > MAX_FIRST_LINE {
            return Err(Reason::HeadTooLarge);
        }
        let mut words = first.split(|&byte| byte == b' ');
        let (Some(method), Some(target), Some(version), None) =
            (words.next(), words.next(), words.next(), words.next())
        else {
            return Err(Reason::BadRequest);
        };
        if !matches!(version, b"HTTP/1.1" | b"HTTP/1.0") || method.is_empty() || !method.iter().copied().all(is_token) {
            return Err(Reason::BadRequest);
        }
        let mut fields = Fields::read(rest, Reason::BadRequest)?;
        if method == b"CONNECT" {
            let target = Authority::read(target, None)?;
            if fields.all("host").next().is_some() {
                check_host(&fields, &target, 443)?;
            }
            if fields.framing(Reason::BadFraming)?.is_some_and(|framing| framing != Framing::Length(0)) {
                return Err(Reason::BadFraming);
            }
            return Ok(Self::Connect(target));
        }
        let method =
            std::str::from_utf8(method).ok().filter(|method| METHODS.contains(method)).ok_or(Reason::BadMethod)?;
        let (target, path) = absolute(target)?;
        check_host(&fields, &target, 80)?;
        if fields.all("upgrade").next().is_some() || fields.all("http2-settings").next().is_some() {
            return Err(Reason::Upgrade);
        }
        let framing = fields.framing(Reason::BadFraming)?.unwrap_or(Framing::None);
        let expects_continue = match fields.one("expect", Reason::BadExpectation)? {
            None => false,
            Some(value) if value.eq_ignore_ascii_case(b"100-continue") => true,
            Some(_) => return Err(Reason::BadExpectation),
        };
        fields.strip(Reason::BadRequest)?;
        // The word for which the caller waits is given here.
        fields.0.retain(|field| field.name != "expect" && field.name != "host");
        let mut written = format!("{method} ").into_bytes();
        written.extend_from_slice(&path);
        written.extend_from_slice(b" HTTP/1.1\r\nhost: ");
        written.extend_from_slice(target.host.as_bytes());
        if target.port != 80 {
            written.extend_from_slice(format!(":{}", target.port).as_bytes());
        }
        written.extend_from_slice(b"\r\n");
        fields.write(&mut written);
        let is_head = method == "HEAD";
        Ok(Self::Forward(Request { target, is_head, framing, expects_continue, head: written }))
    }
}

/// There is one `Host`, and it is the target.
fn check_host(fields: &Fields, target: &Authority, default_port: u16) -> Result<(), Reason> {
    let host = fields.one("host", Reason::HostMismatch)?.ok_or(Reason::HostMismatch)?;
    match Authority::read(host, Some(default_port)) {
        Ok(named) if named == *target => Ok(()),
        Ok(_) | Err(_) => Err(Reason::HostMismatch),
    }
}

/// A whole `http://` URL: its authority, and the path with the query.
fn absolute(target: &[u8]) -> Result<(Authority, Vec<u8>), Reason> {
    if !target.iter().all(u8::is_ascii_graphic) {
        return Err(Reason::BadRequest);
    }
    let Some(colon) = target.windows(3).position(|window| window == b"://") else {
        let scheme = target.iter().position(|&byte| byte == b':').filter(|&end| end > 0);
        let scheme = scheme.filter(|&end| target[..end].iter().all(u8::is_ascii_alphabetic));
        return Err(if scheme.is_some() { Reason::BadScheme } else { Reason::BadTarget });
    };
    let (scheme, rest) = (&target[..colon], &target[colon + 3..]);
    if !scheme.iter().all(|byte| byte.is_ascii_alphanumeric() || b"+-.".contains(byte)) {
        return Err(Reason::BadTarget);
    }
    if scheme.eq_ignore_ascii_case(b"https") {
        return Err(Reason::HttpsInClear);
    }
    if !scheme.eq_ignore_ascii_case(b"http") {
        return Err(Reason::BadScheme);
    }
    let end = rest.iter().position(|byte| b"/?#".contains(byte)).unwrap_or(rest.len());
    let authority = Authority::read(&rest[..end], Some(80))?;
    let path = &rest[end..];
    // A fragment stays with the caller (RFC 9110, 7.1), and a backslash is a slash to some.
    if path.contains(&b'#') || path.contains(&b'\\') {
        return Err(Reason::BadTarget);
    }
    let path = if path.first() == Some(&b'/') { path.to_vec() } else { [b"/", path].concat() };
    Ok((authority, path))
}

/// The head of an answer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Answer {
    /// Its status.
    pub status: u16,
    /// How its body ends.
    pub framing: Framing,
    /// What is sent in its place.
    pub head: Vec<u8>,
}

impl Answer {
    /// Reads a whole head. Redirections are answers like any other: following them is the caller's, who asks us again.
    ///
    /// # Errors
    /// When it is not plain HTTP/1.1.
    pub fn read(head: &[u8], to_head: bool) -> Result<Self, Reason> {
        let lines = lines(head, Reason::BadResponse)?;
        let (first, rest) = lines.split_first().ok_or(Reason::BadResponse)?;
        if first.len() > MAX_FIRST_LINE || !first.iter().copied().all(is_text) {
            return Err(Reason::BadResponse);
        }
        let status = match first {
            [b'H', b'T', b'T', b'P', b'/', b'1', b'.', b'0' | b'1', b' ', status @ ..] => {
                let (digits, after) = status.split_at_checked(3).ok_or(Reason::BadResponse)?;
                let plain = digits.iter().all(u8::is_ascii_digit) && matches!(after.first(), None | Some(b' '));
                let text = std::str::from_utf8(digits).ok().filter(|_| plain).ok_or(Reason::BadResponse)?;
                text.parse::<u16>().map_err(|_| Reason::BadResponse)?
            }
            _ => return Err(Reason::BadResponse),
        };
        if !(100..600).contains(&status) || status == 101 {
            return Err(Reason::BadResponse);
        }
        let mut fields = Fields::read(rest, Reason::BadResponse)?;
        let said = fields.framing(Reason::BadResponse)?;
        let bodiless = to_head || status < 200 || matches!(status, 204 | 304);
        let framing = if bodiless { Framing::None } else { said.unwrap_or(Framing::Close) };
        fields.strip(Reason::BadResponse)?;
        let mut written = [b"HTTP/1.1 ", &first[9..], b"\r\n"].concat();
        fields.write(&mut written);
        Ok(Self { status, framing, head: written })
    }
}

/// A body in chunks, followed to its end without being changed (RFC 9112, 7.1). Extensions and trailers are refused: nobody
/// needs them, and they are read in as many ways as there are readers.
#[derive(Debug, Default)]
pub struct Chunks {
    state: ChunkState,
}

#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
enum ChunkState {
    /// Digits of a size, so many of them.
    #[default]
    Size0,
    Size(u64, u8),
    /// The size is read; LF follows.
    SizeEnd(u64),
    /// So many bytes of content.
    Content(u64),
    ContentCr,
    ContentLf,
    LastCr,
    LastLf,
    End,
}

/// Most digits of a chunk's size: 256 TiB, which no limit lets through.
const MAX_SIZE_DIGITS: u8 = 12;

impl Chunks {
    /// Takes bytes in. How many of them belong to the body.
    ///
    /// # Errors
    /// When they break the framing.
    pub fn follow(&mut self, bytes: &[u8], otherwise: Reason) -> Result<usize, Reason> {
        let mut place = 0;
        while let Some(&byte) = bytes.get(place) {
            let digit = || (byte as char).to_digit(16).map(u64::from);
            self.state = match self.state {
                ChunkState::End => break,
                ChunkState::Content(left) => {
                    let here = usize::try_from(left).unwrap_or(usize::MAX).min(bytes.len() - place);
                    place += here;
                    let left = left - here as u64;
                    self.state = if left == 0 { ChunkState::ContentCr } else { ChunkState::Content(left) };
                    continue;
                }
                ChunkState::Size0 => ChunkState::Size(digit().ok_or(otherwise)?, 1),
                ChunkState::Size(size, digits) => match (byte, digit()) {
                    (b'\r', _) => ChunkState::SizeEnd(size),
                    (_, Some(digit)) if digits < MAX_SIZE_DIGITS => ChunkState::Size(size * 16 + digit, digits + 1),
                    (_, Some(_) | None) => return Err(otherwise),
                },
                ChunkState::SizeEnd(0) if byte == b'\n' => ChunkState::LastCr,
                ChunkState::SizeEnd(size) if byte == b'\n' => ChunkState::Content(size),
                ChunkState::ContentCr if byte == b'\r' => ChunkState::ContentLf,
                ChunkState::ContentLf if byte == b'\n' => ChunkState::Size0,
                ChunkState::LastCr if byte == b'\r' => ChunkState::LastLf,
                ChunkState::LastLf if byte == b'\n' => ChunkState::End,
                ChunkState::SizeEnd(_)
                | ChunkState::ContentCr
                | ChunkState::ContentLf
                | ChunkState::LastCr
                | ChunkState::LastLf => return Err(otherwise),
            };
            place += 1;
        }
        Ok(place)
    }

    /// Whether the last chunk has come.
    pub fn is_over(&self) -> bool {
        self.state == ChunkState::End
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_body_in_chunks_ends_where_it_ends_however_it_comes() {
        let body = b"4\r\nwiki\r\nA\r\n0123456789\r\n0\r\n\r\n";
        for size in 1..=body.len() + 4 {
            let mut chunks = Chunks::default();
            let all = [&body[..], b"GET "].concat();
            let taken: usize = all.chunks(size).map(|piece| chunks.follow(piece, Reason::BadBody).unwrap()).sum();
            assert_eq!((taken, chunks.is_over()), (body.len(), true), "in pieces of {size}");
        }
        for wrong in [
            &b"4;x=y\r\nwiki\r\n"[..],
            b"4\nwiki\r\n",
            b"0x4\r\nwiki\r\n",
            b"+4\r\nwiki\r\n",
            b" 4\r\nwiki\r\n",
            b"4\r\nwikis\r\n",
            b"fffffffffffffffff\r\n",
            b"0\r\nTrailer: x\r\n\r\n",
            b"\r\n",
        ] {
            assert_eq!(Chunks::default().follow(wrong, Reason::BadBody), Err(Reason::BadBody), "{wrong:?}");
        }
    }

    #[test]
    fn what_is_sent_on_is_written_anew() {
        let head = b"GET http://A.Example/x?y=1 HTTP/1.1\r\nHost: a.example\r\nProxy-Authorization: Basic c2VjcmV0\r\n\
                     Connection: keep-alive, X-Own\r\nX-Own: 1\r\nClose: 1\r\nAccept:  */* \r\n\r\n";
        let Ok(Asked::Forward(request)) = Asked::read(head) else { panic!("it is a request") };
        let expected = "GET /x?y=1 HTTP/1.1\r\nhost: a.example\r\naccept: */*\r\nconnection: close\r\n\r\n";
        assert_eq!(String::from_utf8(request.head).unwrap(), expected);
        assert_eq!(request.framing, Framing::None);
    }

    #[test]
    fn an_answer_has_one_end() {
        let read = |text: &str| Answer::read(text.as_bytes(), false);
        let answer = read("HTTP/1.0 302 Found\r\nLocation: http://b.example/\r\nKeep-Alive: x\r\n\r\n").unwrap();
        assert_eq!((answer.status, answer.framing), (302, Framing::Close));
        let written = String::from_utf8(answer.head).unwrap();
        assert_eq!(written, "HTTP/1.1 302 Found\r\nlocation: http://b.example/\r\nconnection: close\r\n\r\n");
        assert_eq!(read("HTTP/1.1 304 x\r\nContent-Length: 5\r\n\r\n").unwrap().framing, Framing::None);
        assert_eq!(read("HTTP/1.1 200 x\r\nContent-Length: 5\r\n\r\n").unwrap().framing, Framing::Length(5));
        for wrong in [
            "HTTP/2 200\r\n\r\n",
            "HTTP/1.1 101 Switching\r\n\r\n",
            "HTTP/1.1 2000 x\r\n\r\n",
            "HTTP/1.1 200 x\r\nContent-Length: 5\r\nContent-Length: 5\r\n\r\n",
            "HTTP/1.1 200 x\r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n",
            "HTTP/1.1 200 x\nA: b\r\n\r\n",
            "HTTP/1.1 200 \u{1b}[31mx\r\n\r\n",
            "HTTP/1.1 200 \u{7f}\r\n\r\n",
            &format!("HTTP/1.1 200 {}\r\n\r\n", "x".repeat(MAX_FIRST_LINE)),
        ] {
            assert_eq!(read(wrong), Err(Reason::BadResponse), "{wrong:?}");
        }
    }
}
