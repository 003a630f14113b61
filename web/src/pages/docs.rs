//! `/docs/errors/{code}`: what a failure means and what to do about it, from the files in `docs/errors/`.

use actix_web::http::StatusCode;
use actix_web::{HttpRequest, HttpResponse, web};
use askama::Template;
use orchestra_events::FailureCode;

use super::error::nothing_here;
use super::prose::{self, Block, Links, SpanKind};
use super::shell::{Shell, page};
use crate::api::error_pages;
use crate::problem::Code;

/// A page of the documentation.
#[derive(Debug, Template)]
#[template(path = "doc.html")]
pub struct DocPage {
    shell: Shell,
    title: String,
    blocks: Vec<Block>,
    others_title: &'static str,
    others: Vec<&'static str>,
}

impl DocPage {
    /// The page of a code, if there is one: its file, or what the code says of itself.
    fn of(code: &str) -> Option<Self> {
        let text = match error_pages::page(code) {
            Some(text) => text.to_owned(),
            None => own_words(code)?,
        };
        let blocks = prose::read(&text, Links::Shown);
        let others = if code == "index" { codes() } else { Vec::new() };
        Some(Self { shell: Shell::for_nobody(), title: code.to_owned(), blocks, others_title: "Every code", others })
    }

    /// Pages of every kind.
    pub fn samples() -> Vec<Self> {
        let written =
            "# A <script>\n\nText with `code`, **weight** and [a link](/docs).\n\n1. one\n\n- two\n\n```\nthree\n```";
        let blocks = prose::read(written, Links::Shown);
        let shell = Shell::for_nobody();
        let written =
            Self { shell, title: "sample".to_owned(), blocks, others_title: "Others", others: vec!["internal"] };
        [Self::of("budget-exceeded"), Self::of("not-found"), Some(written)].into_iter().flatten().collect()
    }
}

fn own_words(code: &str) -> Option<String> {
    if code == "index" {
        return Some("# Error codes\n\nWhat each failure means, and what to do about it.".to_owned());
    }
    if let Some(failure) = FailureCode::ALL.iter().find(|failure| failure.as_str() == code) {
        let again = if failure.retryable() {
            "Doing the same again may succeed."
        } else {
            "Doing the same again will not help."
        };
        return Some(format!("# `{code}`\n\n{}\n\n{again}", failure.hint()));
    }
    let problem = Code::ALL.iter().find(|problem| problem.as_str() == code)?;
    Some(format!("# `{code}`\n\n{}. The answer’s `detail` says what to do.", problem.title()))
}

fn codes() -> Vec<&'static str> {
    let mut codes: Vec<_> = error_pages::PAGES.iter().map(|(code, _)| *code).collect();
    codes.extend(FailureCode::ALL.iter().map(|code| code.as_str()));
    codes.extend(Code::ALL.iter().map(|code| code.as_str()));
    codes.retain(|code| *code != "index");
    codes.sort_unstable();
    codes.dedup();
    codes
}

/// `GET /docs/errors`.
pub async fn index(request: HttpRequest) -> HttpResponse {
    show_code("index", request).await
}

/// The page of an error code: cause and remedy.
#[utoipa::path(get, path = "/docs/errors/{code}", tag = "operation", operation_id = "error", security(()), params(("code" = String, Path)),
    responses((status = 200, description = "A page", content_type = "text/html", body = String)))]
pub async fn show(code: web::Path<String>, request: HttpRequest) -> HttpResponse {
    show_code(&code, request).await
}

async fn show_code(code: &str, request: HttpRequest) -> HttpResponse {
    match DocPage::of(code) {
        Some(found) => page(StatusCode::OK, &found),
        None => nothing_here(request).await,
    }
}
