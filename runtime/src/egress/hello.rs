//! The first message of TLS: which server it names.
//!
//! Exactly one reading is accepted: one record, one message, one `server_name` with one name. A message in pieces over
//! several records, a second name or an encrypted Client Hello is refused, because the other side could read it
//! otherwise than we do. Formats: RFC 8446 (4.1.2, 5.1), RFC 6066 (3).

use super::reason::Reason;

/// The longest record, with its head (RFC 8446, 5.1).
pub const MAX_HELLO: usize = HEAD + (1 << 14);

/// Type, version, length.
const HEAD: usize = 5;
const HANDSHAKE: u8 = 22;
const CLIENT_HELLO: u8 = 1;
const SERVER_NAME: u16 = 0;
/// Encrypted Client Hello, and what is sent in its place to look like it. They cannot be told apart, and the server
/// decrypts what it can whatever name stands outside: behind a shared front, the inner name may be anybody's.
const ENCRYPTED_CLIENT_HELLO: u16 = 0xfe0d;
/// Its predecessor.
const ENCRYPTED_SERVER_NAME: u16 = 0xffce;

/// Reads the server's name off the beginning of a connection. `None`: more bytes are needed.
///
/// # Errors
/// When it is not the beginning of TLS, or names no server in the one way that is accepted.
pub fn server_name(bytes: &[u8]) -> Result<Option<String>, Reason> {
    match bytes.first() {
        None => return Ok(None),
        Some(&HANDSHAKE) => {}
        Some(_) => return Err(Reason::NotTls),
    }
    match bytes.get(1) {
        None => return Ok(None),
        Some(3) => {}
        Some(_) => return Err(Reason::NotTls),
    }
    let Some(head) = bytes.first_chunk::<HEAD>() else { return Ok(None) };
    let length = usize::from(u16::from_be_bytes([head[3], head[4]]));
    if HEAD + length > MAX_HELLO {
        return Err(Reason::HelloTooLarge);
    }
    if length < 4 {
        return Err(Reason::HelloFragmented);
    }
    if bytes.get(HEAD).is_some_and(|&kind| kind != CLIENT_HELLO) {
        return Err(Reason::BadHello);
    }
    let Some(record) = bytes.get(HEAD..HEAD + length) else { return Ok(None) };
    let message = usize::try_from(u32::from_be_bytes([0, record[1], record[2], record[3]])).unwrap_or(usize::MAX);
    match (4 + message).cmp(&length) {
        std::cmp::Ordering::Greater => Err(Reason::HelloFragmented),
        std::cmp::Ordering::Less => Err(Reason::BadHello),
        std::cmp::Ordering::Equal => name_of(&record[4..]).map(Some),
    }
}

/// What is left to read of a message.
struct Rest<'a>(&'a [u8]);

impl<'a> Rest<'a> {
    fn take(&mut self, count: usize) -> Result<&'a [u8], Reason> {
        let (taken, rest) = self.0.split_at_checked(count).ok_or(Reason::BadHello)?;
        self.0 = rest;
        Ok(taken)
    }

    fn short(&mut self) -> Result<u16, Reason> {
        self.take(2).map(|bytes| u16::from_be_bytes([bytes[0], bytes[1]]))
    }

    /// What stands behind its length in one byte.
    fn small(&mut self) -> Result<&'a [u8], Reason> {
        let length = self.take(1)?[0];
        self.take(length.into())
    }

    /// What stands behind its length in two bytes.
    fn large(&mut self) -> Result<&'a [u8], Reason> {
        let length = self.short()?;
        self.take(length.into())
    }

    fn end(&self) -> Result<(), Reason> {
        if self.0.is_empty() { Ok(()) } else { Err(Reason::BadHello) }
    }
}

fn name_of(message: &[u8]) -> Result<String, Reason> {
    let mut rest = Rest(message);
    // Version and random.
    rest.take(2 + 32)?;
    let (session, ciphers, compressions) = (rest.small()?, rest.large()?, rest.small()?);
    if session.len() > 32 || ciphers.is_empty() || ciphers.len() % 2 != 0 || compressions.is_empty() {
        return Err(Reason::BadHello);
    }
    if rest.0.is_empty() {
        return Err(Reason::NoServerName);
    }
    let mut extensions = Rest(rest.large()?);
    rest.end()?;
    let (mut name, mut hidden) = (None, false);
    while !extensions.0.is_empty() {
        let kind = extensions.short()?;
        let content = extensions.large()?;
        match kind {
            SERVER_NAME => {
                if name.is_some() {
                    return Err(Reason::BadHello);
                }
                name = Some(listed(content)?);
            }
            ENCRYPTED_CLIENT_HELLO | ENCRYPTED_SERVER_NAME => hidden = true,
            _ => {}
        }
    }
    if hidden {
        return Err(Reason::EncryptedHello);
    }
    name.ok_or(Reason::NoServerName)
}

/// The one host name of a list of names.
fn listed(content: &[u8]) -> Result<String, Reason> {
    let mut rest = Rest(content);
    let mut list = Rest(rest.large()?);
    rest.end()?;
    // The only type that there is.
    if list.take(1)?[0] != 0 {
        return Err(Reason::BadHello);
    }
    let name = list.large()?;
    list.end()?;
    match std::str::from_utf8(name) {
        Ok(name) if !name.is_empty() && name.is_ascii() => Ok(name.to_ascii_lowercase()),
        Ok(_) | Err(_) => Err(Reason::BadHello),
    }
}
