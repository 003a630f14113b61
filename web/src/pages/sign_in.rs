//! `/sign-in`: a key becomes a session, so that no key stays in the browser; or a one-time ticket does.

use actix_web::cookie::{Cookie, SameSite};
use actix_web::http::{StatusCode, header};
use actix_web::{HttpRequest, HttpResponse, web};
use askama::Template;
use serde::Deserialize;

use super::actions::Plain;
use super::error::PageError;
use super::shell::{Shell, Visitor, page};
use crate::App;
use crate::auth::caller::same_origin;
use crate::auth::{Caller, session};
use crate::problem::{Code, Problem};

/// The sign-in page.
#[derive(Debug, Template)]
#[template(path = "sign_in.html")]
pub struct SignInPage {
    shell: Shell,
    error: Option<&'static str>,
    next: String,
}

impl SignInPage {
    fn new(error: Option<&'static str>, next: &str) -> Self {
        Self { shell: Shell::for_nobody(), error, next: own_path(next).to_owned() }
    }

    /// With and without an error.
    pub fn samples() -> Vec<Self> {
        vec![Self::new(None, "/tasks"), Self::new(Some("No."), "/tasks?text=%3Cscript%3E\"<b>")]
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

/// `GET /sign-in`.
pub async fn show(next: web::Query<Next>) -> HttpResponse {
    page(StatusCode::OK, &SignInPage::new(None, &next.next))
}

fn cookie<'c>(request: &HttpRequest, value: String) -> Cookie<'c> {
    Cookie::build(session::COOKIE, value)
        .path("/")
        .http_only(true)
        .same_site(SameSite::Strict)
        .secure(request.connection_info().scheme() == "https")
        .finish()
}

fn signed_in(app: &App, request: &HttpRequest, caller: Caller, next: &str) -> Result<HttpResponse, PageError> {
    let value = app.sessions.start(caller).ok_or_else(|| Problem::internal("the system gave no random bytes"))?;
    Ok(HttpResponse::SeeOther()
        .cookie(cookie(request, value))
        .insert_header((header::LOCATION, own_path(next)))
        .insert_header((header::CACHE_CONTROL, "no-store"))
        .finish())
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
        Some(caller) => signed_in(&app, &request, caller, &form.next),
        None => {
            let error = "This server does not know that key. Check that it is whole, or ask for a new one.";
            Ok(page(StatusCode::UNAUTHORIZED, &SignInPage::new(Some(error), &form.next)))
        }
    }
}

/// `GET /sign-in/{ticket}`: the link that the command line prints. Works once.
pub async fn redeem(
    app: web::Data<App>,
    request: HttpRequest,
    ticket: web::Path<String>,
) -> Result<HttpResponse, PageError> {
    let caller = app.dashboard.tickets.redeem(&ticket).and_then(|caller| app.current(&caller.who));
    match caller {
        Some(caller) => signed_in(&app, &request, caller, "/"),
        None => {
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
    if let Some(open) = request.cookie(session::COOKIE) {
        app.sessions.end(open.value());
    }
    let mut gone = cookie(&request, String::new());
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
