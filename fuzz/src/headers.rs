//! What a request says about where it came from and who sent it. An input is header lines as they stand on the wire.

use std::net::{IpAddr, Ipv4Addr};
use std::sync::OnceLock;

use actix_web::http::header::{HeaderMap, HeaderName, HeaderValue, X_FORWARDED_FOR};
use orchestra_events::envelope::MAX_ORIGIN_TEXT;
use orchestra_web::auth::KeyRing;
use orchestra_web::auth::address::{self, Proxies};
use orchestra_web::auth::people::Bond;

/// Header lines that are looked at; the server takes about as many.
const MAX_LINES: usize = 64;
/// A proxy that is trusted.
const PROXY: IpAddr = IpAddr::V4(Ipv4Addr::new(10, 0, 0, 1));
/// Somebody who calls through it, or past it.
const CALLER: IpAddr = IpAddr::V4(Ipv4Addr::new(203, 0, 113, 9));

/// Reads headers as the server does for each request.
pub fn headers(input: &[u8]) {
    static PROXIES: OnceLock<Proxies> = OnceLock::new();
    let trusted = || Proxies::new(vec!["10.0.0.0/8".parse().expect("a network")]);
    let proxies = PROXIES.get_or_init(trusted);
    let mut headers = HeaderMap::new();
    for line in input.split(|byte| *byte == b'\n').take(MAX_LINES) {
        let line = line.strip_suffix(b"\r").unwrap_or(line);
        let Some(colon) = line.iter().position(|byte| *byte == b':') else { continue };
        let (name, value) =
            (HeaderName::from_bytes(&line[..colon]), HeaderValue::from_bytes(line[colon + 1..].trim_ascii()));
        if let (Ok(name), Ok(value)) = (name, value) {
            cookie(&value);
            bearer(&value);
            headers.append(name, value);
        }
    }
    if let Some(agent) = address::user_agent(&headers) {
        assert!((1..=MAX_ORIGIN_TEXT).contains(&agent.len()) && !agent.chars().any(char::is_control), "{agent:?}");
        assert_eq!(address::kept(&agent).as_deref().map(str::trim), Some(agent.trim()));
    }
    // Whoever comes past the proxies says nothing about where they are.
    assert_eq!(proxies.origin(Some(CALLER), &headers), Some(CALLER));
    assert!(!proxies.says_https(Some(CALLER), &headers));
    assert_eq!(proxies.origin(None, &headers), None);
    // Whatever a caller writes, the address that the proxy adds to it is theirs, or none is.
    headers.append(X_FORWARDED_FOR, HeaderValue::from_static("203.0.113.9"));
    let origin = proxies.origin(Some(PROXY), &headers);
    assert!(origin.is_none_or(|origin| origin == CALLER), "a caller is taken for {origin:?}: {headers:?}");
}

/// The cookie of a sign-in that is under way: one that is taken is the same when it is written again.
fn cookie(value: &HeaderValue) {
    let Some(bond) = value.to_str().ok().and_then(Bond::read) else { return };
    let again = Bond::read(&bond.cookie()).expect("what was written is read");
    assert_eq!((again.next(), again.cookie()), (bond.next(), bond.cookie()));
}

/// A key that was never issued opens nothing.
fn bearer(value: &HeaderValue) {
    static KEYS: OnceLock<KeyRing> = OnceLock::new();
    let Ok(text) = value.to_str() else { return };
    assert!(KEYS.get_or_init(KeyRing::default).authenticate(text).is_none());
}
