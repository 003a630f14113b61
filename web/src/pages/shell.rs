//! The frame around every page, and who is looking at it.

use std::future::{Ready, ready};

use actix_web::dev::Payload;
use actix_web::http::StatusCode;
use actix_web::http::header::{self, ContentType};
use actix_web::web::Data;
use actix_web::{FromRequest, HttpRequest, HttpResponse};
use askama::Template;
use orchestra_events::SessionId;
use orchestra_events::key::Scope;
use orchestra_events::session::{Membership, Session};
use sha2::{Digest, Sha256};
use subtle::ConstantTimeEq;

use super::assets;
use super::error::PageError;
use crate::App;
use crate::auth::caller::Via;
use crate::auth::{Caller, Who, transport};

/// What every page's frame needs.
#[derive(Debug, Clone)]
pub struct Shell {
    /// Who is signed in.
    pub visitor: Option<Visitor>,
    /// The style sheet.
    pub css: String,
    /// The mark.
    pub icon: String,
    /// htmx.
    pub htmx: String,
    /// Its stream extension.
    pub sse: String,
    /// Our own script.
    pub script: String,
}

impl Shell {
    /// The frame for somebody who is not signed in.
    pub fn for_nobody() -> Self {
        Self {
            visitor: None,
            css: assets::STYLE.url(),
            icon: assets::ICON.url(),
            htmx: assets::HTMX.url(),
            sse: assets::SSE.url(),
            script: assets::SCRIPT.url(),
        }
    }

    /// The frame for a visitor.
    pub fn of(visitor: &Visitor) -> Self {
        Self { visitor: Some(visitor.clone()), ..Self::for_nobody() }
    }

    /// The frame as a template test sees it.
    pub fn sample() -> Self {
        Self::of(&Visitor::sample())
    }
}

/// Somebody who is signed in, as an extractor; the guard has sent everybody else to the sign-in page.
#[derive(Debug, Clone)]
pub struct Visitor {
    /// Who they are.
    pub caller: Caller,
    /// The name on the page.
    pub name: String,
    /// What every form of theirs carries.
    pub csrf: String,
    /// The teams that they have a part in, where there is a choice.
    pub teams: Vec<TeamChoice>,
    /// The path they asked for.
    path: String,
}

/// A place of the dashboard, as every page leads there.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Place {
    /// Where it is.
    pub path: &'static str,
    /// What it is called.
    pub name: &'static str,
    /// This page is it, or belongs to it.
    pub here: bool,
}

/// One of the teams that a person has a part in.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TeamChoice {
    /// What the form sends; empty for the whole server.
    pub value: String,
    /// What the person reads.
    pub name: String,
    /// They speak for it now.
    pub chosen: bool,
}

impl TeamChoice {
    fn all(session: &Session) -> Vec<Self> {
        let chosen = session.membership();
        let choice = |membership: &Membership| Self {
            value: membership.team.clone().unwrap_or_default(),
            name: match &membership.team {
                Some(team) => format!("{team} ({})", membership.role),
                None => "Whole server".to_owned(),
            },
            chosen: Some(membership) == chosen,
        };
        session.grant.memberships.iter().map(choice).collect()
    }
}

/// The token that proves that a form was made for this session: the hash of a secret that only its cookie holds.
pub fn csrf_token(cookie: &str) -> String {
    let digest = Sha256::new().chain_update(b"orchestra form\n").chain_update(cookie).finalize();
    digest.iter().map(|byte| format!("{byte:02x}")).collect()
}

impl Visitor {
    fn new(caller: Caller, path: &str, cookie: Option<&str>, session: Option<&Session>) -> Self {
        Self {
            name: caller.name.clone(),
            csrf: cookie.map(csrf_token).unwrap_or_default(),
            teams: session.map(TeamChoice::all).unwrap_or_default(),
            path: path.to_owned(),
            caller,
        }
    }

    /// Whether a form that carries this token was made for this visitor. Who sends a key with every request needs none.
    pub fn check_form(&self, token: &str) -> Result<(), PageError> {
        let matches = match self.caller.via {
            Via::Key => true,
            Via::Session(_) => bool::from(self.csrf.as_bytes().ct_eq(token.as_bytes())),
        };
        if matches { Ok(()) } else { Err(PageError::stale_form()) }
    }

    /// The places that are theirs to see.
    pub fn places(&self) -> impl Iterator<Item = Place> {
        let path = if self.path == "/" { "/tasks" } else { &self.path };
        [
            ("/tasks", "Tasks", None),
            ("/campaigns", "Campaigns", None),
            ("/budgets", "Budgets", None),
            ("/usage", "Usage", None),
            ("/webhooks", "Webhooks", None),
            ("/audit", "Audit", Some(Scope::AuditRead)),
            ("/keys", "Keys", Some(Scope::KeysRead)),
            ("/people", "People", Some(Scope::KeysWrite)),
        ]
        .into_iter()
        .filter(|(_, _, scope)| scope.is_none_or(|scope| self.caller.may(scope)))
        .map(move |(place, name, _)| {
            let here = path.strip_prefix(place).is_some_and(|rest| rest.is_empty() || rest.starts_with('/'));
            Place { path: place, name, here }
        })
    }

    /// Whether they are still signed in, with the rights that they had; asked by streams, which outlive the request.
    pub fn still_here(&self, app: &App) -> bool {
        app.standing(&self.caller).is_some_and(|now| now.team == self.caller.team && now.scopes == self.caller.scopes)
    }

    /// A visitor of tests.
    pub fn sample() -> Self {
        let key = orchestra_events::KeyId::from_uuid(uuid::Uuid::from_u128(7));
        let caller = Caller {
            team: Some("platform".to_owned()),
            via: Via::Session(SessionId::from_uuid(uuid::Uuid::from_u128(8))),
            ..Caller::named(Who::Key(key), "Ada's laptop <b>")
        };
        let choice =
            |value: &str, name: &str, chosen| TeamChoice { value: value.to_owned(), name: name.to_owned(), chosen };
        let teams = vec![choice("platform", "platform (admin)", true), choice("", "Whole server", false)];
        Self { teams, ..Self::new(caller, "/tasks", Some("cookie"), None) }
    }
}

impl FromRequest for Visitor {
    type Error = PageError;
    type Future = Ready<Result<Self, PageError>>;

    fn from_request(request: &HttpRequest, payload: &mut Payload) -> Self::Future {
        let caller = Caller::from_request(request, payload).into_inner();
        ready(caller.map_err(PageError::from).map(|caller| {
            let Some((app, Via::Session(id))) = request.app_data::<Data<App>>().map(|app| (app, caller.via)) else {
                return Self::new(caller, request.path(), None, None);
            };
            let (cookie, session) = (transport::session_cookie(app, request), app.sessions.get(id));
            Self::new(caller, request.path(), cookie.as_deref(), session.as_deref())
        }))
    }
}

/// Renders a page. Pages are about somebody's tasks: no cache keeps them. Forms of ours name this server as their
/// origin, which a stricter referrer policy would hide from ourselves.
pub fn page(status: StatusCode, template: &impl Template) -> HttpResponse {
    match template.render() {
        Ok(html) => HttpResponse::build(status)
            .insert_header(ContentType::html())
            .insert_header((header::CACHE_CONTROL, "no-store"))
            .insert_header((header::REFERRER_POLICY, "same-origin"))
            .body(html),
        Err(error) => {
            tracing::error!(%error, "a page does not render; report this");
            HttpResponse::InternalServerError().content_type("text/plain").body("This page cannot be shown.\n")
        }
    }
}
