//! How a browser reaches this server: encrypted or not, which decides the names and flags of cookies.

use actix_web::HttpRequest;
use actix_web::cookie::{Cookie, SameSite};
use orchestra_events::{Actor, Origin};

use super::{address, session};
use crate::App;

/// How browsers reach this server.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Transport {
    /// It is published under an `https` address.
    pub https: bool,
}

impl Transport {
    /// As the address says that it is published under.
    pub fn of(public_url: &str) -> Self {
        Self { https: public_url.get(..8).is_some_and(|scheme| scheme.eq_ignore_ascii_case("https://")) }
    }
}

/// Whether the browser that sent this speaks encrypted: always, or by the word of a proxy that is believed.
pub fn is_https(app: &App, request: &HttpRequest) -> bool {
    app.transport.https || app.proxies.says_https(address::peer(request), request.headers())
}

/// Where a request came from, as far as that is known; the name is that of who sent it.
pub fn origin(app: &App, request: &HttpRequest, name: Option<&str>) -> Option<Box<Origin>> {
    let origin = Origin {
        name: name.and_then(address::kept),
        address: app.proxies.origin(address::peer(request), request.headers()),
        user_agent: address::user_agent(request.headers()),
        request: None,
    };
    origin.known()
}

/// Somebody who is not known, as events name them.
pub fn stranger(app: &App, request: &HttpRequest) -> Actor {
    Actor { origin: origin(app, request, None), ..Actor::system("sign-in") }
}

/// The cookie of the session that a request carries, of the one name that counts here.
pub fn session_cookie(app: &App, request: &HttpRequest) -> Option<String> {
    let name = if is_https(app, request) { session::SECURE_COOKIE } else { session::COOKIE };
    request.cookie(name).map(|cookie| cookie.value().to_owned())
}

/// A cookie of ours: for this host alone, and for no script.
pub fn cookie<'c>(https: bool, name: (&'static str, &'static str), value: String, same_site: SameSite) -> Cookie<'c> {
    let (secure, plain) = name;
    Cookie::build(if https { secure } else { plain }, value)
        .path("/")
        .http_only(true)
        .same_site(same_site)
        .secure(https)
        .finish()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_published_address_says_whether_it_is_encrypted() {
        for (address, https) in [
            ("https://orchestra.example.com", true),
            ("HTTPS://orchestra.example.com", true),
            ("http://127.0.0.1:7070", false),
            ("httpsé", false),
            ("", false),
        ] {
            assert_eq!(Transport::of(address).https, https, "{address}");
        }
    }

    #[test]
    fn an_encrypted_cookie_is_bound_to_its_host() {
        let of = |https| cookie(https, (session::SECURE_COOKIE, session::COOKIE), "x".to_owned(), SameSite::Strict);
        assert_eq!(of(true).to_string(), "__Host-orchestra_session=x; HttpOnly; SameSite=Strict; Secure; Path=/");
        assert_eq!(of(false).to_string(), "orchestra_session=x; HttpOnly; SameSite=Strict; Path=/");
    }
}
