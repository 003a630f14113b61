//! `/sign-in`: a key becomes a session, so that no key stays in the browser; or a one-time ticket does, or the word of an
//! identity provider ([`oidc`]).

pub mod oidc;

use actix_web::cookie::SameSite;
use actix_web::http::{StatusCode, header};
use actix_web::{HttpMessage as _, HttpRequest, HttpResponse, web};
use askama::Template;
use jiff::Timestamp;
use orchestra_events::Actor;
use orchestra_events::session::{Holder, SessionEnd, Way};
use secrecy::ExposeSecret as _;
use serde::Deserialize;

use super::actions::Plain;
use super::error::PageError;
use super::shell::{Shell, Visitor, page};
use crate::App;
use crate::auth::caller::{Via, same_origin};
use crate::auth::limits::Verdict;
use crate::auth::session::{COOKIE, SECURE_COOKIE};
use crate::auth::watch::TakenDown;
use crate::auth::{Caller, NewSession, Who, address, transport};
use crate::problem::{Code, Problem};

/// The sign-in page.
#[derive(Debug, Template)]
#[template(path = "sign_in.html")]
pub struct SignInPage {
    shell: Shell,
    error: Option<&'static str>,
    next: String,
    /// Where the identity provider's button leads, and what it says.
    provider: Option<(String, String)>,
}

impl SignInPage {
    fn new(app: Option<&App>, error: Option<&'static str>, next: &str) -> Self {
        let next = own_path(next).to_owned();
        let provider = app.and_then(|app| app.people.as_ref()).map(|people| {
            (format!("/sign-in/oidc?next={}", super::error::query_value(&next)), people.label().to_owned())
        });
        Self { shell: Shell::for_nobody(), error, next, provider }
    }

    /// With and without an error, with and without a provider.
    pub fn samples() -> Vec<Self> {
        let provider = Some(("/sign-in/oidc?next=/".to_owned(), "Acme <b> \"SSO\"".to_owned()));
        vec![
            Self::new(None, None, "/tasks"),
            Self { provider, ..Self::new(None, Some("No."), "/tasks?text=%3Cscript%3E\"<b>") },
        ]
    }
}

/// The page that leads on. A browser that comes from another site sends no strict cookie, not even along a redirect; from
/// a page of ours it does.
#[derive(Debug, Template)]
#[template(path = "onward.html")]
pub struct OnwardPage {
    shell: Shell,
    next: String,
}

impl OnwardPage {
    fn new(next: &str) -> Self {
        Self { shell: Shell::for_nobody(), next: next.to_owned() }
    }

    /// The page.
    pub fn samples() -> Vec<Self> {
        vec![Self::new("/tasks?text=%3Cscript%3E\"<b>;url=//evil.example")]
    }
}

/// A path on this server; anything that could lead elsewhere becomes the front page.
fn own_path(next: &str) -> &str {
    let inside = next.starts_with('/')
        && !next.starts_with("//")
        && !next.contains('\\')
        && !next.starts_with("/sign-")
        && next.bytes().all(|byte| byte.is_ascii_graphic());
    if inside { next } else { "/" }
}

/// Where to go afterwards.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub struct Next {
    next: String,
}

/// The filled-in form.
#[derive(Deserialize)]
pub struct SignIn {
    key: String,
    #[serde(default)]
    next: String,
}

fn from_elsewhere(request: &HttpRequest) -> bool {
    request.headers().get("sec-fetch-site").is_some_and(|site| site == "cross-site")
}

/// `GET /sign-in`. Who follows a link on another site is signed in without its looking so: asked from here, they are.
pub async fn show(app: web::Data<App>, request: HttpRequest, next: web::Query<Next>) -> HttpResponse {
    let open = transport::session_cookie(&app, &request).and_then(|cookie| app.sessions.find(&cookie));
    if open.is_some_and(|open| app.signed_in(open.id, &open.session).is_some()) {
        return HttpResponse::SeeOther().insert_header((header::LOCATION, own_path(&next.next))).finish();
    }
    if from_elsewhere(&request) {
        let again = format!("/sign-in?next={}", super::error::query_value(own_path(&next.next)));
        return page(StatusCode::OK, &OnwardPage::new(&again));
    }
    page(StatusCode::OK, &SignInPage::new(Some(&app), None, &next.next))
}

/// Begins a session of a caller who has shown a key or a link for one, and puts its cookie on the answer.
async fn begin(
    app: &App,
    request: &HttpRequest,
    new: NewSession,
    actor: &Actor,
    mut answer: HttpResponse,
) -> Result<HttpResponse, PageError> {
    let before = transport::session_cookie(app, request);
    let (_, value) = app.sessions.start(&*app.store, new, before.as_deref(), actor).await.map_err(Problem::from)?;
    let https = transport::is_https(app, request);
    let cookie = transport::cookie(https, (SECURE_COOKIE, COOKIE), value.expose_secret().to_owned(), SameSite::Strict);
    answer.add_cookie(&cookie).map_err(|error| Problem::internal(error.to_string()))?;
    answer.headers_mut().insert(header::CACHE_CONTROL, header::HeaderValue::from_static("no-store"));
    Ok(answer)
}

async fn signed_in(
    app: &App,
    request: &HttpRequest,
    caller: Caller,
    way: Way,
    next: &str,
) -> Result<HttpResponse, PageError> {
    let from = app.proxies.origin(address::peer(request), request.headers());
    let caller = Caller { address: from, user_agent: address::user_agent(request.headers()), ..caller };
    let Who::Key(key) = caller.who else {
        return Err(Problem::internal("a session made another one").into());
    };
    let holder = Holder::Key { key };
    if !caller.bounds.admits_address(from) {
        request.extensions_mut().insert(TakenDown);
        app.sessions.refuse(&*app.store, way, "address-not-allowed", Some(holder), &caller.actor()).await;
        return Err(Problem::address_not_allowed(from).into());
    }
    app.keys.used(&caller, Timestamp::now());
    let (name, generation) = (caller.name.clone(), caller.generation);
    let new = NewSession { holder, way, name, memberships: Vec::new(), generation };
    let answer = HttpResponse::SeeOther().insert_header((header::LOCATION, own_path(next))).finish();
    begin(app, request, new, &caller.actor(), answer).await
}

/// `POST /sign-in`.
pub async fn submit(
    app: web::Data<App>,
    request: HttpRequest,
    form: web::Form<SignIn>,
) -> Result<HttpResponse, PageError> {
    if !same_origin(&request) {
        return Err(PageError::stale_form().back_to("/sign-in", "To the sign-in page"));
    }
    match app.keys.authenticate(form.key.trim()) {
        Some(caller) => signed_in(&app, &request, caller, Way::Key, &form.next).await,
        None => {
            let peer = address::peer(&request);
            let Verdict { allowance, refused } =
                app.limits.failed(app.proxies.origin(peer, request.headers()).or(peer));
            allowance.map(|allowance| request.extensions_mut().insert(allowance));
            if let Some(problem) = refused {
                return Err(PageError::from(problem).back_to("/sign-in", "To the sign-in page"));
            }
            let actor = transport::stranger(&app, &request);
            // A key that is over is known to the record, and to nobody who shows it.
            let whose = app.keys.whose(form.key.trim());
            let holder = whose.and_then(|caller| match caller.who {
                Who::Key(key) => Some(Holder::Key { key }),
                Who::Person { .. } => None,
            });
            request.extensions_mut().insert(TakenDown);
            app.sessions.refuse(&*app.store, Way::Key, "unknown-key", holder, &actor).await;
            let error = "This server does not know that key. Check that it is whole, or ask for a new one.";
            Ok(page(StatusCode::UNAUTHORIZED, &SignInPage::new(Some(&app), Some(error), &form.next)))
        }
    }
}

/// `GET /sign-in/{ticket}`: the link that the command line prints. Works once.
pub async fn redeem(
    app: web::Data<App>,
    request: HttpRequest,
    ticket: web::Path<String>,
) -> Result<HttpResponse, PageError> {
    let caller = app.dashboard.tickets.redeem(&ticket).and_then(|caller| app.standing(&caller));
    match caller {
        Some(caller) => signed_in(&app, &request, caller, Way::Link, "/").await,
        None => {
            let actor = transport::stranger(&app, &request);
            request.extensions_mut().insert(TakenDown);
            app.sessions.refuse(&*app.store, Way::Link, "unknown-link", None, &actor).await;
            let detail =
                "This link was used before, or is older than ten minutes. Ask for a new one, or sign in with your key.";
            Err(PageError::from(Problem::new(Code::Unauthenticated, detail)).back_to("/sign-in", "Sign in with a key"))
        }
    }
}

/// `POST /sign-out`.
pub async fn sign_out(
    app: web::Data<App>,
    visitor: Visitor,
    request: HttpRequest,
    form: web::Form<Plain>,
) -> Result<HttpResponse, PageError> {
    visitor.check_form(form.csrf())?;
    if let Via::Session(id) = visitor.caller.via {
        let actor = visitor.caller.actor();
        app.sessions.end(&*app.store, id, SessionEnd::SignedOut, &actor).await.map_err(Problem::from)?;
    }
    let https = transport::is_https(&app, &request);
    let mut gone = transport::cookie(https, (SECURE_COOKIE, COOKIE), String::new(), SameSite::Strict);
    gone.make_removal();
    Ok(HttpResponse::SeeOther().cookie(gone).insert_header((header::LOCATION, "/sign-in")).finish())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nobody_is_sent_elsewhere_after_signing_in() {
        for (next, goes) in [
            ("/tasks/x?before=3", "/tasks/x?before=3"),
            ("https://evil.example", "/"),
            ("//evil.example", "/"),
            ("/\\evil.example", "/"),
            ("/a\r\nSet-Cookie: x", "/"),
            ("/sign-in?next=/sign-in", "/"),
            ("", "/"),
        ] {
            assert_eq!(own_path(next), goes, "{next:?}");
        }
    }
}
