//! `host:port` as a sandbox writes it, in one strict reading: a name of letters, digits and hyphens, nothing else.
//!
//! What could be read in two ways (dots at the end, percent signs, numbers that some library takes for an address) is
//! refused here, before anything is compared with a list.

use super::reason::Reason;

/// The longest host name (RFC 1035, 2.3.4).
pub const MAX_HOST: usize = 253;

/// The longest label of one.
const MAX_LABEL: usize = 63;

/// Names of this very machine, which hosts files give to it (RFC 6761, 6.3).
const LOCAL_NAMES: [&str; 5] =
    ["localhost", "localhost.localdomain", "localhost6.localdomain6", "ip6-localhost", "ip6-loopback"];

/// A host and a port of it.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Authority {
    /// The host's name, in lower case.
    pub host: String,
    /// The port.
    pub port: u16,
}

impl Authority {
    /// Reads `host:port`; without a port where `default_port` says what that means.
    ///
    /// # Errors
    /// When it is anything but a name and a port.
    pub fn read(text: &[u8], default_port: Option<u16>) -> Result<Self, Reason> {
        if text.contains(&b'@') {
            return Err(Reason::Userinfo);
        }
        if text.first() == Some(&b'[') {
            return Err(Reason::AddressLiteral);
        }
        let text = std::str::from_utf8(text).map_err(|_| Reason::BadHost)?;
        if text.parse::<std::net::Ipv6Addr>().is_ok() {
            return Err(Reason::AddressLiteral);
        }
        let (host, port) = match text.split_once(':') {
            Some((host, port)) => (host, read_port(port)?),
            None => (text, default_port.ok_or(Reason::BadPort)?),
        };
        Ok(Self { host: read_host(host)?, port })
    }
}

/// Decimal digits without a sign, a space or a zero in front.
fn read_port(text: &str) -> Result<u16, Reason> {
    let plain = !text.is_empty() && text.len() <= 5 && text.bytes().all(|byte| byte.is_ascii_digit());
    if !plain || text.starts_with('0') {
        return Err(Reason::BadPort);
    }
    text.parse().map_err(|_| Reason::BadPort)
}

/// Reads a host name into lower case.
///
/// # Errors
/// When it is an address, a name of this machine, or no name.
pub fn read_host(text: &str) -> Result<String, Reason> {
    if text.is_empty() || text.len() > MAX_HOST {
        return Err(Reason::BadHost);
    }
    let fits = |label: &str| {
        !label.is_empty()
            && label.len() <= MAX_LABEL
            && label.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'-')
            && !label.starts_with('-')
            && !label.ends_with('-')
    };
    if !text.split('.').all(fits) {
        return Err(Reason::BadHost);
    }
    let host = text.to_ascii_lowercase();
    // Of a name whose last label is a number, inet_aton and the URL standard make an address: 2130706433, 0x7f.1, 10.1.
    let last = host.rsplit('.').next().unwrap_or_default();
    let number = match last.strip_prefix("0x") {
        Some(digits) => digits.bytes().all(|byte| byte.is_ascii_hexdigit()),
        None => last.bytes().all(|byte| byte.is_ascii_digit()),
    };
    if number {
        return Err(Reason::AddressLiteral);
    }
    if LOCAL_NAMES.contains(&&*host) || host.ends_with(".localhost") {
        return Err(Reason::LocalName);
    }
    Ok(host)
}

/// What is shown of a host that a sandbox has written: printable ASCII, without what may be a password, and bounded.
pub fn shown(text: &[u8]) -> String {
    /// Longer than any name, so that what is cut was none.
    const MAX_SHOWN: usize = MAX_HOST + 3;
    let host = text.rsplit(|&byte| byte == b'@').next().unwrap_or_default();
    let clean = |&byte: &u8| if byte.is_ascii_graphic() { char::from(byte) } else { '?' };
    let mut text: String = host.iter().take(MAX_SHOWN).map(clean).collect();
    if host.len() > MAX_SHOWN {
        text.truncate(MAX_SHOWN - 3);
        text.push_str("...");
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_and_a_port_are_read_in_one_way_only() {
        let read = |text: &str| Authority::read(text.as_bytes(), None).map(|found| (found.host, found.port));
        assert_eq!(read("Registry.Example:443"), Ok(("registry.example".into(), 443)));
        assert_eq!(read("xn--bcher-kva.example:8080"), Ok(("xn--bcher-kva.example".into(), 8080)));
        for (text, reason) in [
            ("registry.example", Reason::BadPort),
            ("registry.example:", Reason::BadPort),
            ("registry.example:0443", Reason::BadPort),
            ("registry.example:+443", Reason::BadPort),
            ("registry.example:443:443", Reason::BadPort),
            ("registry.example:65536", Reason::BadPort),
            ("registry.example.:443", Reason::BadHost),
            ("registry..example:443", Reason::BadHost),
            ("-registry.example:443", Reason::BadHost),
            ("registry%2eexample:443", Reason::BadHost),
            ("b\u{fc}cher.example:443", Reason::BadHost),
            ("registry.example\0:443", Reason::BadHost),
            (":443", Reason::BadHost),
            ("user@registry.example:443", Reason::Userinfo),
            ("2130706433:443", Reason::AddressLiteral),
            ("0x7f000001:443", Reason::AddressLiteral),
            ("0x:443", Reason::AddressLiteral),
            ("0177.0.0.1:443", Reason::AddressLiteral),
            ("127.1:443", Reason::AddressLiteral),
            ("[::1]:443", Reason::AddressLiteral),
            ("::1", Reason::AddressLiteral),
            ("LOCALHOST:443", Reason::LocalName),
            ("a.localhost:443", Reason::LocalName),
        ] {
            assert_eq!(read(text), Err(reason), "{text:?}");
        }
        let long = format!("{}.example:443", vec!["a".repeat(63); 4].join("."));
        assert_eq!(read(&long), Err(Reason::BadHost));
    }

    #[test]
    fn what_is_shown_is_clean_and_short() {
        assert_eq!(shown(b"user:secret@host:1"), "host:1");
        assert_eq!(shown("a\r\n\u{202e}b".as_bytes()), "a?????b");
        assert_eq!(shown(&[b'a'; 5000]).len(), 256);
    }
}
