//! `/people`: who is signed in, for whoever answers for the team or the server; and a person's choice among their teams.

use std::time::Duration;

use actix_web::http::{StatusCode, header};
use actix_web::{HttpResponse, web};
use askama::Template;
use jiff::Timestamp;
use orchestra_events::session::{Holder, Session, SessionEnd, Way};
use orchestra_events::{Actor, SessionId};
use serde::Deserialize;

use super::actions::Plain;
use super::error::PageError;
use super::format;
use super::shell::{Shell, Visitor, page};
use crate::App;
use crate::auth::caller::Via;
use crate::auth::session::Open;
use crate::auth::{Caller, Who};
use crate::problem::{Code, Problem};

/// Most sessions on the page; the newest.
const MAX_SHOWN: usize = 500;

/// The page.
#[derive(Debug, Template)]
#[template(path = "people.html")]
pub struct PeoplePage {
    shell: Shell,
    notice: Option<&'static str>,
    people: Vec<PersonPanel>,
    /// How many sessions more there are.
    omitted: usize,
}

/// Somebody with a session or more.
#[derive(Debug)]
struct PersonPanel {
    name: String,
    id: String,
    parts: Vec<String>,
    sessions: Vec<Row>,
}

#[derive(Debug)]
struct Row {
    id: String,
    way: &'static str,
    since: String,
    used: String,
    ends: String,
    own: bool,
}

/// What has just been done.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub struct Query {
    notice: Option<String>,
}

/// The team that somebody goes on for; empty for the whole server.
#[derive(Deserialize)]
pub struct Choice {
    #[serde(default)]
    csrf: String,
    #[serde(default)]
    team: String,
}

/// When a session began: its id says so.
fn began(id: SessionId) -> Timestamp {
    let (seconds, nanos) = id.uuid().get_timestamp().map_or((0, 0), |at| at.to_unix());
    Timestamp::new(i64::try_from(seconds).unwrap_or(0), i32::try_from(nanos).unwrap_or(0))
        .unwrap_or(Timestamp::UNIX_EPOCH)
}

/// The teams that a session can speak for; `None` is the whole server.
fn teams(app: &App, session: &Session) -> Vec<Option<String>> {
    match &session.grant.holder {
        Holder::Person { .. } => session.grant.memberships.iter().map(|membership| membership.team.clone()).collect(),
        Holder::Key { key } => vec![app.keys.holder(*key).and_then(|holder| holder.team)],
    }
}

/// Whether a caller answers for whose session it is: for all of the server, or for the one team that it is about.
fn answers_for(app: &App, caller: &Caller, session: &Session) -> bool {
    caller.is_admin() || teams(app, session).iter().all(|team| team.as_deref().is_some_and(|team| caller.sees(team)))
}

/// The open sessions that the caller answers for.
fn in_charge_of(app: &App, caller: &Caller) -> Vec<Open> {
    let all = app.sessions.all().into_iter();
    // A revoked key's sessions are over without an end of their own.
    let lives = all.filter(|open| app.signed_in(open.id, &open.session).is_some());
    lives.filter(|open| answers_for(app, caller, &open.session)).collect()
}

impl Row {
    fn new(open: &Open, own: bool, now: Timestamp) -> Self {
        let way = match open.session.grant.way {
            Way::Key => "with a key",
            Way::Link => "with a link from the command line",
            Way::Oidc => "through the identity provider",
        };
        let used = now.saturating_sub(Duration::min(open.unused, Duration::from_secs(u32::MAX.into())));
        Self {
            id: open.id.to_string(),
            way,
            since: format::moment(began(open.id)),
            used: format::ago(used.unwrap_or(now), now),
            ends: format::moment(open.session.grant.ends),
            own,
        }
    }
}

impl PersonPanel {
    fn all(app: &App, visitor: &Visitor, open: &[Open], now: Timestamp) -> Vec<Self> {
        let mut panels: Vec<Self> = Vec::new();
        for open in open {
            let grant = &open.session.grant;
            let row = Row::new(open, visitor.caller.via == Via::Session(open.id), now);
            let id = grant.holder.id();
            match panels.iter_mut().find(|panel| panel.id == id) {
                Some(panel) => panel.sessions.push(row),
                None => {
                    let parts = match &grant.holder {
                        Holder::Key { .. } => {
                            let teams = teams(app, &open.session).into_iter();
                            teams
                                .map(|team| {
                                    team.map_or_else(
                                        || "an operator's key".to_owned(),
                                        |team| format!("a key of {team}"),
                                    )
                                })
                                .collect()
                        }
                        Holder::Person { .. } => grant
                            .memberships
                            .iter()
                            .map(|membership| match &membership.team {
                                Some(team) => format!("{} of {team}", membership.role),
                                None => "admin of the whole server".to_owned(),
                            })
                            .collect(),
                    };
                    panels.push(Self { name: grant.name.clone(), id, parts, sessions: vec![row] });
                }
            }
        }
        panels
    }
}

impl PeoplePage {
    /// With nobody, and with somebody hostile.
    pub fn samples() -> Vec<Self> {
        let row = |own| Row {
            id: "session_00000000000000000000000001".to_owned(),
            way: "with a key",
            since: "1 Jan 2026, 10:00 UTC".to_owned(),
            used: "just now".to_owned(),
            ends: "1 Jan 2026, 22:00 UTC".to_owned(),
            own,
        };
        let person = PersonPanel {
            name: "Ada <script>".to_owned(),
            id: "login.example.com:5f0<b>".to_owned(),
            parts: vec!["admin of platform".to_owned()],
            sessions: vec![row(true), row(false)],
        };
        let empty = || Self { shell: Shell::sample(), notice: None, people: Vec::new(), omitted: 0 };
        vec![empty(), Self { notice: Some("Done."), people: vec![person], omitted: 3, ..empty() }]
    }
}

/// `GET /people`.
pub async fn show(app: web::Data<App>, visitor: Visitor, query: web::Query<Query>) -> HttpResponse {
    let mut open = in_charge_of(&app, &visitor.caller);
    let omitted = open.len().saturating_sub(MAX_SHOWN);
    open.truncate(MAX_SHOWN);
    let people = PersonPanel::all(&app, &visitor, &open, Timestamp::now());
    let notice = match query.notice.as_deref() {
        Some("ended") => Some("Signed out. Open pages of theirs notice within a second."),
        _ => None,
    };
    page(StatusCode::OK, &PeoplePage { shell: Shell::of(&visitor), notice, people, omitted })
}

/// The session of a form, once the visitor has shown that the form is theirs and that they answer for it.
fn admitted(app: &App, visitor: &Visitor, id: &str, csrf: &str) -> Result<Open, PageError> {
    visitor.check_form(csrf)?;
    let nobody = || Problem::new(Code::NotFound, "There is no such session, or it is over.");
    let id: SessionId = id.parse().map_err(|_| nobody())?;
    let session =
        app.sessions.get(id).filter(|session| answers_for(app, &visitor.caller, session)).ok_or_else(nobody)?;
    Ok(Open { id, session, unused: Duration::ZERO })
}

fn back() -> HttpResponse {
    HttpResponse::SeeOther().insert_header((header::LOCATION, "/people?notice=ended")).finish()
}

/// `POST /people/{id}/end`.
pub async fn end(
    app: web::Data<App>,
    visitor: Visitor,
    id: web::Path<String>,
    form: web::Form<Plain>,
) -> Result<HttpResponse, PageError> {
    let open = admitted(&app, &visitor, &id, form.csrf())?;
    let actor = visitor.caller.actor();
    app.sessions.end(&*app.store, open.id, SessionEnd::Ended, &actor).await.map_err(Problem::from)?;
    Ok(back())
}

/// `POST /people/{id}/end-all`: every session of whose session this is.
pub async fn end_all(
    app: web::Data<App>,
    visitor: Visitor,
    id: web::Path<String>,
    form: web::Form<Plain>,
) -> Result<HttpResponse, PageError> {
    let one = admitted(&app, &visitor, &id, form.csrf())?;
    let actor = visitor.caller.actor();
    for open in in_charge_of(&app, &visitor.caller) {
        if open.session.grant.holder == one.session.grant.holder {
            app.sessions.end(&*app.store, open.id, SessionEnd::Ended, &actor).await.map_err(Problem::from)?;
        }
    }
    Ok(back())
}

/// `POST /team`: goes on for another of the visitor's teams.
pub async fn choose(app: web::Data<App>, visitor: Visitor, form: web::Form<Choice>) -> Result<HttpResponse, PageError> {
    visitor.check_form(&form.csrf)?;
    let (Via::Session(id), Who::Person { .. }) = (visitor.caller.via, &visitor.caller.who) else {
        return Err(Problem::new(Code::Conflict, "A key speaks for one team alone.").into());
    };
    let team = Some(form.into_inner().team).filter(|team| !team.is_empty());
    // Of no team: each would learn of the other.
    let actor = Actor { team: None, ..visitor.caller.actor() };
    app.sessions.choose(&*app.store, id, team, &actor).await.map_err(Problem::from)?;
    Ok(HttpResponse::SeeOther().insert_header((header::LOCATION, "/tasks")).finish())
}
