//! What goes wrong, as a page: the same codes and sentences as the API's problems, for people.

use std::fmt;

use actix_web::http::StatusCode;
use actix_web::http::header;
use actix_web::{HttpRequest, HttpResponse, ResponseError};
use askama::Template;

use super::shell::{Shell, page};
use super::timeline::Link;
use crate::problem::{Code, Problem};

/// Why a page cannot be shown.
#[derive(Debug)]
pub enum PageError {
    /// Nobody is signed in.
    SignIn {
        /// The path to come back to.
        next: String,
    },
    /// Something else, and where to go from there.
    Problem(Problem, Option<Link>),
}

impl PageError {
    /// There is nothing here.
    pub fn not_found() -> Self {
        Self::Problem(Problem::new(Code::NotFound, "There is nothing at this address."), None)
    }

    /// The form is not one of ours, or the sign-in that it belonged to is over.
    pub fn stale_form() -> Self {
        let detail = "This form is out of date. Go back, load the page again and repeat it.";
        Self::Problem(Problem::new(Code::CrossSiteRequest, detail), None)
    }

    /// The same problem with a way back.
    #[must_use]
    pub fn back_to(self, href: impl Into<String>, text: &str) -> Self {
        match self {
            Self::Problem(problem, _) => {
                Self::Problem(problem, Some(Link { href: href.into(), text: text.to_owned() }))
            }
            Self::SignIn { .. } => self,
        }
    }
}

impl<E: Into<Problem>> From<E> for PageError {
    fn from(error: E) -> Self {
        Self::Problem(error.into(), None)
    }
}

impl fmt::Display for PageError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::SignIn { .. } => f.write_str("nobody is signed in"),
            Self::Problem(problem, _) => problem.fmt(f),
        }
    }
}

/// A page that says one thing.
#[derive(Debug, Template)]
#[template(path = "message.html")]
pub struct MessagePage {
    /// The frame.
    pub shell: Shell,
    /// The stable code, where there is one.
    pub code: &'static str,
    /// What it is about.
    pub title: String,
    /// What happened and what to do.
    pub detail: String,
    /// Where to go.
    pub link: Option<Link>,
}

impl MessagePage {
    fn of(problem: &Problem, link: Option<&Link>) -> Self {
        let home = || Link { href: "/tasks".to_owned(), text: "To the tasks".to_owned() };
        let title = match problem.code {
            Code::NotFound => "Nothing here",
            code => code.title(),
        };
        Self {
            shell: Shell::for_nobody(),
            code: problem.code.as_str(),
            title: title.to_owned(),
            detail: problem.detail.clone(),
            link: Some(link.cloned().unwrap_or_else(home)),
        }
    }

    /// Contexts of every kind.
    pub fn samples() -> Vec<Self> {
        let link = Link { href: "/tasks/x".to_owned(), text: "Back".to_owned() };
        vec![Self::of(&Problem::no_such_task(), None), Self::of(&Problem::no_such_path(), Some(&link))]
    }
}

impl ResponseError for PageError {
    fn status_code(&self) -> StatusCode {
        match self {
            Self::SignIn { .. } => StatusCode::SEE_OTHER,
            Self::Problem(problem, _) => problem.code.status(),
        }
    }

    fn error_response(&self) -> HttpResponse {
        match self {
            Self::SignIn { next } => {
                let next = query_value(next);
                HttpResponse::SeeOther().insert_header((header::LOCATION, format!("/sign-in?next={next}"))).finish()
            }
            Self::Problem(problem, link) => {
                let mut response = page(problem.code.status(), &MessagePage::of(problem, link.as_ref()));
                if let Some(seconds) = problem.retry_after {
                    response.headers_mut().insert(header::RETRY_AFTER, seconds.into());
                }
                // For whoever takes down what was refused.
                response.extensions_mut().insert(problem.code);
                response
            }
        }
    }
}

/// Percent-encodes everything that is not safe within a query value.
pub(super) fn query_value(text: &str) -> String {
    use fmt::Write as _;
    text.bytes().fold(String::new(), |mut encoded, byte| {
        if byte.is_ascii_alphanumeric() || matches!(byte, b'/' | b'-' | b'_' | b'.' | b'~') {
            encoded.push(char::from(byte));
        } else {
            // Writing to a String does not fail.
            let _ = write!(encoded, "%{byte:02X}");
        }
        encoded
    })
}

/// What answers where nothing is: a page for a browser, a problem for everybody else.
pub async fn nothing_here(request: HttpRequest) -> HttpResponse {
    let accepts = request.headers().get(header::ACCEPT).and_then(|accept| accept.to_str().ok()).unwrap_or_default();
    if accepts.contains("text/html") && !request.path().starts_with("/v1/") {
        PageError::not_found().error_response()
    } else {
        Problem::no_such_path().error_response()
    }
}
