//! `/keys`: the keys that exist for the visitor, and the forms that issue, rotate and revoke them. What a form says goes the
//! way of a request to `/v1/keys`; a key's text is on the page that answers, and on no other.

use std::time::Duration;

use actix_web::http::{StatusCode, header};
use actix_web::{HttpResponse, web};
use askama::Template;
use jiff::Timestamp;
use orchestra_events::KeyId;
use orchestra_events::key::{KeyResource, Scope};
use secrecy::ExposeSecret as _;
use serde::Deserialize;
use serde_json::{Map, Value, json};

use super::actions::Plain;
use super::error::PageError;
use super::format;
use super::shell::{Shell, Visitor, page};
use crate::App;
use crate::api::keys::{DEFAULT_PAGE, OVERLAP, issue_for, page_for, revoke_for, rotate_for};
use crate::auth::{Caller, Who};
use crate::problem::{Code, Problem};

/// Days that a new key may be given, on the form.
const DAYS: [u32; 4] = [7, 30, 90, 365];
/// Most days taken from a form.
const MAX_DAYS: u32 = 3_650;
/// The lists that bound a key, by their names in a request, and what they are called on the form.
const BOUNDS: [(&str, &str, &str); 6] = [
    ("repos", "Repositories", "github:acme/*"),
    ("projects", "Projects", ""),
    ("environments", "Environments", ""),
    ("taskTypes", "Task types", ""),
    ("models", "Models", "claude-*"),
    ("networks", "Networks", "10.0.0.0/8"),
];

/// The page.
#[derive(Debug, Template)]
#[template(path = "keys.html")]
pub struct KeysPage {
    shell: Shell,
    notice: Option<&'static str>,
    keys: Vec<Row>,
    older: Option<String>,
    form: Option<Form>,
}

/// A key that was just made, with its text.
#[derive(Debug, Template)]
#[template(path = "key_shown.html")]
pub struct KeyShownPage {
    shell: Shell,
    title: &'static str,
    name: String,
    text: String,
    note: String,
}

#[derive(Debug)]
struct Row {
    id: String,
    name: String,
    status: &'static str,
    class: &'static str,
    scopes: Vec<&'static str>,
    bounds: Vec<String>,
    facts: Vec<String>,
    changeable: bool,
}

#[derive(Debug)]
struct Choice {
    value: String,
    text: String,
    chosen: bool,
}

#[derive(Debug)]
struct Field {
    name: &'static str,
    label: &'static str,
    placeholder: &'static str,
    value: String,
}

/// The form for a new key.
#[derive(Debug)]
struct Form {
    faults: Vec<String>,
    name: String,
    /// For operators, who issue keys for any team.
    team: Option<String>,
    scopes: Vec<Choice>,
    days: Vec<Choice>,
    bounds: Vec<Field>,
}

/// What was filled in; a name may come several times.
#[derive(Debug, Default, Deserialize)]
#[serde(transparent)]
pub struct Filled(Vec<(String, String)>);

impl Filled {
    fn all(&self, name: &str) -> impl Iterator<Item = &str> {
        let named = self.0.iter().filter(move |(known, _)| known == name);
        named.map(|(_, value)| value.trim()).filter(|value| !value.is_empty())
    }

    fn text(&self, name: &str) -> Option<&str> {
        self.all(name).next()
    }

    /// The same as a request to `/v1/keys`.
    fn request(&self, now: Timestamp) -> Result<Value, Problem> {
        let mut request = Map::new();
        for name in ["name", "team", "environment"] {
            if let Some(text) = self.text(name) {
                request.insert(name.to_owned(), json!(text));
            }
        }
        request.insert("scopes".to_owned(), json!(self.all("scopes").collect::<Vec<_>>()));
        let mut bounds = Map::new();
        for (name, ..) in BOUNDS {
            let texts = self.all(name).flat_map(|text| text.split([',', '\n', '\r', ' ']));
            let texts: Vec<_> = texts.map(str::trim).filter(|text| !text.is_empty()).collect();
            if !texts.is_empty() {
                bounds.insert(name.to_owned(), json!(texts));
            }
        }
        if !bounds.is_empty() {
            request.insert("bounds".to_owned(), Value::Object(bounds));
        }
        if let Some(days) = self.text("days") {
            let days = days.parse::<u32>().ok().filter(|days| (1..=MAX_DAYS).contains(days));
            let ends = days.and_then(|days| now.checked_add(Duration::from_secs(u64::from(days) * 86_400)).ok());
            let ends = ends.ok_or_else(|| Problem::new(Code::InvalidRequest, "That is no number of days."))?;
            request.insert("expiresAt".to_owned(), json!(format::iso(ends)));
        }
        Ok(Value::Object(request))
    }
}

impl Form {
    /// The form as this visitor may fill it in, with what they have filled in.
    fn new(caller: &Caller, filled: &Filled, faults: Vec<String>) -> Self {
        let chosen: Vec<_> = filled.all("scopes").collect();
        let scopes = Scope::ALL.iter().filter(|scope| caller.may(**scope));
        let days = filled.text("days").unwrap_or(if filled.0.is_empty() { "90" } else { "" });
        let day = |number: u32| Choice {
            value: number.to_string(),
            text: format!("{number} days"),
            chosen: days == number.to_string(),
        };
        let never = Choice { value: String::new(), text: "Never".to_owned(), chosen: days.is_empty() };
        let text = |name: &str| filled.text(name).unwrap_or_default().to_owned();
        let bound = |(name, label, placeholder): (&'static str, &'static str, &'static str)| Field {
            name,
            label,
            placeholder,
            value: text(name),
        };
        Self {
            faults,
            name: text("name"),
            team: caller.is_admin().then(|| text("team")),
            scopes: scopes
                .map(|scope| Choice {
                    value: scope.as_str().to_owned(),
                    text: scope.as_str().to_owned(),
                    chosen: chosen.contains(&scope.as_str()),
                })
                .collect(),
            days: DAYS.into_iter().map(day).chain([never]).collect(),
            bounds: BOUNDS.map(bound).into(),
        }
    }
}

impl Row {
    fn new(resource: &KeyResource, caller: &Caller, now: Timestamp) -> Self {
        let KeyResource { id, key, created_at, created_by, .. } = resource;
        let grant = &key.grant;
        let (status, class) = match (key.revoked, key.expired(now)) {
            (true, _) => ("Revoked", "cancelled"),
            (false, true) => ("Expired", "failed"),
            (false, false) => ("Active", "succeeded"),
        };
        let bounds = [
            ("projects", grant.bounds.projects.clone()),
            ("environments", grant.bounds.environments.clone()),
            ("task types", grant.bounds.task_types.clone()),
            ("repositories", grant.bounds.repos.iter().map(ToString::to_string).collect()),
            ("models", grant.bounds.models.iter().map(ToString::to_string).collect()),
            ("networks", grant.bounds.networks.iter().map(ToString::to_string).collect()),
        ];
        let bounds = bounds.into_iter().filter(|(_, list)| !list.is_empty());
        let mut facts = vec![
            grant.team.as_ref().map_or_else(|| "Operator's key".to_owned(), |team| format!("Team {team}")),
            format!("issued {} by {created_by}", format::moment(*created_at)),
        ];
        facts.push(match key.last_use {
            Some(last) => {
                let from = last.address.map_or_else(String::new, |address| format!(" from {address}"));
                format!("last used {}{from}", format::moment(last.at))
            }
            None => "never used".to_owned(),
        });
        facts.extend(grant.expires_at.map(|at| format!("expires {}", format::moment(at))));
        facts.extend(resource.rotated_at.map(|at| format!("rotated {}", format::moment(at))));
        let previous = key.previous.as_ref().filter(|previous| key.stands(now) && now < previous.until);
        facts
            .extend(previous.map(|previous| format!("the text before works until {}", format::moment(previous.until))));
        facts.extend(resource.revoked_at.map(|at| format!("revoked {}", format::moment(at))));
        let limits =
            [(grant.limits.requests_per_minute, "requests a minute"), (grant.limits.concurrent_tasks, "tasks at once")];
        facts.extend(limits.into_iter().filter_map(|(limit, of)| Some(format!("at most {} {of}", limit?))));
        Self {
            id: id.to_string(),
            name: grant.name.clone(),
            status,
            class,
            scopes: grant.scopes.iter().map(|scope| scope.as_str()).collect(),
            bounds: bounds.map(|(of, list)| format!("{of}: {}", list.join(", "))).collect(),
            facts,
            changeable: key.stands(now) && caller.may(Scope::KeysWrite),
        }
    }
}

impl KeysPage {
    /// Without keys, and with a hostile one.
    pub fn samples() -> Vec<Self> {
        let row = Row {
            id: "key_00000000000000000000000001".to_owned(),
            name: "ci <script>".to_owned(),
            status: "Active",
            class: "succeeded",
            scopes: vec!["tasks:create", "tasks:read"],
            bounds: vec!["repositories: github:acme/*".to_owned()],
            facts: vec!["Team platform".to_owned(), "never used".to_owned()],
            changeable: true,
        };
        let filled = Filled(vec![("name".to_owned(), "\"<b>".to_owned()), ("days".to_owned(), "7".to_owned())]);
        let caller = Shell::sample().visitor.map(|visitor| visitor.caller);
        let form = caller.map(|caller| {
            let caller = Caller { scopes: vec![Scope::Admin], ..caller };
            Form::new(&caller, &filled, vec!["name: is <too> long".to_owned()])
        });
        let empty = || Self { shell: Shell::sample(), notice: None, keys: Vec::new(), older: None, form: None };
        vec![
            empty(),
            Self { notice: Some("Done."), keys: vec![row], older: Some("/keys?cursor=x".to_owned()), form, ..empty() },
        ]
    }
}

impl KeyShownPage {
    /// One that was issued.
    pub fn samples() -> Vec<Self> {
        let shell = Shell::sample();
        let (name, text, note) = ("ci <b>".to_owned(), "orc_live_x_y".to_owned(), "The one before …".to_owned());
        vec![Self { shell, title: "A new key", name, text, note }]
    }
}

/// Which keys.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub struct Query {
    cursor: Option<String>,
    notice: Option<String>,
}

async fn list(
    app: &App,
    visitor: &Visitor,
    query: &Query,
    filled: &Filled,
    faults: Vec<String>,
) -> Result<KeysPage, PageError> {
    let cursor = match query.cursor.as_deref() {
        None => None,
        Some(cursor) => Some(cursor.parse::<KeyId>().map_err(|_| PageError::not_found())?),
    };
    let page = page_for(app, &visitor.caller, cursor, DEFAULT_PAGE).await?;
    let now = Timestamp::now();
    Ok(KeysPage {
        shell: Shell::of(visitor),
        notice: match query.notice.as_deref() {
            Some("revoked") => Some("Revoked. What was open with the key has ended."),
            _ => None,
        },
        keys: page.keys.iter().map(|key| Row::new(key, &visitor.caller, now)).collect(),
        older: page.next.map(|id| format!("/keys?cursor={id}")),
        form: visitor.caller.may(Scope::KeysWrite).then(|| Form::new(&visitor.caller, filled, faults)),
    })
}

/// `GET /keys`.
pub async fn show(app: web::Data<App>, visitor: Visitor, query: web::Query<Query>) -> Result<HttpResponse, PageError> {
    Ok(page(StatusCode::OK, &list(&app, &visitor, &query, &Filled::default(), Vec::new()).await?))
}

/// `POST /keys`.
pub async fn issue(
    app: web::Data<App>,
    visitor: Visitor,
    filled: web::Form<Filled>,
) -> Result<HttpResponse, PageError> {
    visitor.check_form(filled.text("csrf").unwrap_or_default())?;
    let issued = async {
        let request = serde_json::value::to_raw_value(&filled.request(Timestamp::now())?).map_err(Problem::internal)?;
        issue_for(&app, &visitor.caller, &request).await
    };
    let (key, text) = match issued.await {
        Ok(issued) => issued,
        // What can be mended is shown beside what was filled in.
        Err(problem) if matches!(problem.code, Code::InvalidRequest | Code::Forbidden) => {
            let told = problem
                .errors
                .iter()
                .map(|fault| format!("{} {}", fault.pointer.trim_start_matches('/'), fault.detail));
            let told: Vec<_> = told.collect();
            let faults = if told.is_empty() { vec![problem.detail.clone()] } else { told };
            let page_again = list(&app, &visitor, &Query::default(), &filled, faults).await?;
            return Ok(page(problem.code.status(), &page_again));
        }
        Err(problem) => return Err(PageError::from(problem).back_to("/keys", "Back to the keys")),
    };
    let note = "Send it as “Authorization: Bearer …”. Whoever has it can do what the key can do.".to_owned();
    Ok(shown(&visitor, "A new key", key, text.expose_secret(), note))
}

fn shown(visitor: &Visitor, title: &'static str, key: KeyResource, text: &str, note: String) -> HttpResponse {
    let shell = Shell::of(visitor);
    page(StatusCode::OK, &KeyShownPage { shell, title, name: key.key.grant.name, text: text.to_owned(), note })
}

fn with_way_back(problem: Problem) -> PageError {
    PageError::from(problem).back_to("/keys", "Back to the keys")
}

/// `POST /keys/{id}/rotate`.
pub async fn rotate(
    app: web::Data<App>,
    visitor: Visitor,
    id: web::Path<String>,
    form: web::Form<Plain>,
) -> Result<HttpResponse, PageError> {
    visitor.check_form(form.csrf())?;
    let (key, text) = rotate_for(&app, &visitor.caller, &id, OVERLAP).await.map_err(with_way_back)?;
    let until = key.key.previous.as_ref().map(|previous| format::moment(previous.until)).unwrap_or_default();
    let note = format!("The text before works until {until}. Put this one in its place until then.");
    Ok(shown(&visitor, "A key’s new text", key, text.expose_secret(), note))
}

/// `POST /keys/{id}/revoke`.
pub async fn revoke(
    app: web::Data<App>,
    visitor: Visitor,
    id: web::Path<String>,
    form: web::Form<Plain>,
) -> Result<HttpResponse, PageError> {
    visitor.check_form(form.csrf())?;
    // Whoever signed in with the key sees whose button this is.
    let own = matches!(&visitor.caller.who, Who::Key(own) if own.to_string() == *id);
    revoke_for(&app, &visitor.caller, &id, own).await.map_err(with_way_back)?;
    Ok(HttpResponse::SeeOther().insert_header((header::LOCATION, "/keys?notice=revoked")).finish())
}
