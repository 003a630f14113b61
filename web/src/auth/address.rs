//! Where a request came from: the address, through proxies that are known, and the program's own word for itself.
//!
//! A header that says "this came from there" is believed only as far as a trusted proxy wrote it: whoever connects is
//! asked first, then the list that proxies append to is walked from its right end, and the first hop that is no trusted
//! proxy is the caller. What stands left of it is the caller's own claim.

use std::net::{IpAddr, SocketAddr};

use actix_web::HttpRequest;
use actix_web::http::header::{self, HeaderMap, HeaderName};
use ipnet::IpNet;
use orchestra_events::envelope::MAX_ORIGIN_TEXT;

/// Most hops looked at. A chain of more trusted proxies than this is a mistake.
pub const MAX_HOPS: usize = 16;

/// The networks of the proxies in front of the server.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Proxies(Vec<IpNet>);

/// What the headers say about where a request came from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Said {
    /// Nothing.
    Nothing,
    /// That it came from there; `None`: something that is no address.
    From(Option<IpAddr>),
}

impl Proxies {
    /// Those in these networks.
    pub fn new(networks: Vec<IpNet>) -> Self {
        Self(networks)
    }

    fn trusts(&self, address: IpAddr) -> bool {
        self.0.iter().any(|network| network.contains(&address))
    }

    /// The address of who sent the request. `None`: a trusted proxy does not say, or two of its headers disagree.
    pub fn origin(&self, peer: Option<IpAddr>, headers: &HeaderMap) -> Option<IpAddr> {
        let peer = peer?.to_canonical();
        if !self.trusts(peer) {
            return Some(peer);
        }
        let listed = self.walk(headers, &header::X_FORWARDED_FOR, |hop| Some(hop));
        let forwarded = self.walk(headers, &header::FORWARDED, forwarded_for);
        match (listed, forwarded) {
            // The proxy itself asks: a probe of its own.
            (Said::Nothing, Said::Nothing) => Some(peer),
            (Said::From(address), Said::Nothing) | (Said::Nothing, Said::From(address)) => address,
            // A proxy writes one of the two and passes on what its caller wrote in the other.
            (Said::From(one), Said::From(other)) => one.filter(|_| one == other),
        }
    }

    /// Whether the proxy that sent the request was itself asked encrypted (`X-Forwarded-Proto`).
    pub fn says_https(&self, peer: Option<IpAddr>, headers: &HeaderMap) -> bool {
        let said = headers.get("x-forwarded-proto").and_then(|said| said.to_str().ok());
        // Of several, the last is the nearest proxy's own.
        let nearest = said.and_then(|said| said.rsplit(',').next()).map(str::trim);
        peer.is_some_and(|peer| self.trusts(peer.to_canonical()))
            && nearest.is_some_and(|scheme| scheme.eq_ignore_ascii_case("https"))
    }

    fn walk(&self, headers: &HeaderMap, name: &HeaderName, part: fn(&str) -> Option<&str>) -> Said {
        let lines: Vec<_> = headers.get_all(name).collect();
        let hops = lines.into_iter().rev().flat_map(|line| line.to_str().unwrap_or("?").rsplit(','));
        let mut last = Said::Nothing;
        for hop in hops.take(MAX_HOPS) {
            let Some(address) = part(hop.trim()).and_then(parse_hop) else { return Said::From(None) };
            last = Said::From(Some(address));
            if !self.trusts(address) {
                return last;
            }
        }
        last
    }
}

/// The `for=` of an element of `Forwarded` (RFC 7239).
fn forwarded_for(element: &str) -> Option<&str> {
    element.split(';').find_map(|pair| {
        let (name, value) = pair.trim().split_once('=')?;
        name.eq_ignore_ascii_case("for").then(|| value.trim_matches('"'))
    })
}

/// `192.0.2.1`, `192.0.2.1:80`, `2001:db8::1`, `[2001:db8::1]`, `[2001:db8::1]:80`.
fn parse_hop(text: &str) -> Option<IpAddr> {
    let bare = text.strip_prefix('[').and_then(|text| text.strip_suffix(']')).unwrap_or(text);
    let address = bare.parse::<IpAddr>().ok().or_else(|| text.parse::<SocketAddr>().ok().map(|socket| socket.ip()));
    address.map(|address| address.to_canonical())
}

/// A text of a caller as it may be kept: one line, printable, bounded. `None`: nothing is left.
pub fn kept(text: &str) -> Option<String> {
    let mut kept = String::new();
    for letter in text.trim().chars().filter(|letter| !letter.is_control()) {
        if kept.len() + letter.len_utf8() > MAX_ORIGIN_TEXT {
            break;
        }
        kept.push(letter);
    }
    (!kept.is_empty()).then_some(kept)
}

/// The program that sent the request, by its own word.
pub fn user_agent(headers: &HeaderMap) -> Option<String> {
    kept(&String::from_utf8_lossy(headers.get(header::USER_AGENT)?.as_bytes()))
}

/// The address at the other end of the connection.
pub fn peer(request: &HttpRequest) -> Option<IpAddr> {
    request.peer_addr().map(|socket| socket.ip())
}

#[cfg(test)]
mod tests {
    use actix_web::http::header::HeaderValue;

    use super::*;

    fn origin(trusted: &[&str], peer: &str, lines: &[(&str, &str)]) -> Option<String> {
        let mut headers = HeaderMap::new();
        for (name, value) in lines {
            headers.append(name.parse().expect("a name"), HeaderValue::from_str(value).expect("a value"));
        }
        let proxies = Proxies::new(trusted.iter().map(|network| network.parse().expect("a network")).collect());
        proxies.origin(Some(peer.parse().expect("an address")), &headers).map(|address| address.to_string())
    }

    #[test]
    fn only_trusted_proxies_are_believed_and_only_what_they_wrote_themselves() {
        let (list, forwarded) = ("x-forwarded-for", "forwarded");
        let ours = ["10.0.0.0/8", "fd00::/8"];
        let found = |address: &str| Some(address.to_owned());
        // Whoever is no proxy of ours may write what they like.
        assert_eq!(origin(&[], "203.0.113.9", &[(list, "10.0.0.1")]), found("203.0.113.9"));
        assert_eq!(origin(&ours, "203.0.113.9", &[(list, "10.0.0.1")]), found("203.0.113.9"));
        assert_eq!(origin(&ours, "::ffff:10.0.0.2", &[]), found("10.0.0.2"));
        // The right-most hop that is not ours; what stands before it is a claim.
        assert_eq!(origin(&ours, "10.0.0.2", &[(list, "192.0.2.7, 203.0.113.9, 10.0.0.3")]), found("203.0.113.9"));
        assert_eq!(origin(&ours, "10.0.0.2", &[(list, "192.0.2.7"), (list, "203.0.113.9")]), found("203.0.113.9"));
        assert_eq!(origin(&ours, "10.0.0.2", &[(list, "10.0.0.9, 10.0.0.3")]), found("10.0.0.9"));
        assert_eq!(origin(&ours, "fd00::1", &[(list, "2001:db8::5")]), found("2001:db8::5"));
        assert_eq!(origin(&ours, "10.0.0.2", &[(list, "203.0.113.9:4711")]), found("203.0.113.9"));
        // RFC 7239.
        let standard = "for=192.0.2.7, for=\"[2001:db8::17]:4711\";proto=https";
        assert_eq!(origin(&ours, "10.0.0.2", &[(forwarded, standard)]), found("2001:db8::17"));
        assert_eq!(origin(&ours, "10.0.0.2", &[(forwarded, "for=\"x, For=203.0.113.9")]), found("203.0.113.9"));
        // What cannot be told is not guessed.
        assert_eq!(origin(&ours, "10.0.0.2", &[(list, "unknown")]), None);
        assert_eq!(origin(&ours, "10.0.0.2", &[(forwarded, "for=_hidden")]), None);
        assert_eq!(origin(&ours, "10.0.0.2", &[(list, "203.0.113.9"), (forwarded, "for=10.1.1.1")]), None);
        let both = [(list, "203.0.113.9"), (forwarded, "for=203.0.113.9")];
        assert_eq!(origin(&ours, "10.0.0.2", &both), found("203.0.113.9"));
        let long = vec!["10.0.0.3"; 100].join(",");
        assert_eq!(origin(&ours, "10.0.0.2", &[(list, &long)]), found("10.0.0.3"));
    }

    #[test]
    fn what_a_caller_says_of_itself_is_cut_to_a_line() {
        assert_eq!(kept(" curl/8.1\u{7}\n ").as_deref(), Some("curl/8.1"));
        assert_eq!(kept("\u{1b}\n"), None);
        let long = kept(&"é".repeat(1_000)).expect("a text");
        assert_eq!(long.len(), MAX_ORIGIN_TEXT);
    }
}
