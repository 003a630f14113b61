//! `/webhooks` and `/webhooks/{id}`: who outside is told what happens, and what became of telling them.

use actix_web::http::{StatusCode, header};
use actix_web::{HttpResponse, web};
use askama::Template;
use orchestra_actors::NewWebhook;
use orchestra_events::key::Scope;
use orchestra_events::projections::{
    Cursor, DeliveryOutcome, DeliveryPage, DeliveryRow, WebhookPage as Found, WebhookRow,
};
use orchestra_events::webhook::command::DEFAULT_OVERLAP;
use orchestra_events::webhook::event::MAX_DESCRIPTION;
use orchestra_events::webhook::{DisabledWhy, MessageId, WebhookSpec};
use orchestra_events::{Actor, WebhookId};
use secrecy::{ExposeSecret as _, SecretString};
use serde::Deserialize;

use super::actions::Plain;
use super::error::PageError;
use super::format;
use super::shell::{Shell, Visitor, page};
use crate::App;
use crate::api::rules;
use crate::api::webhooks::{actor, check_bounds, check_reading, is_theirs, patterns, position_of, visible as find};
use crate::problem::{Field, Problem};

/// Webhooks on one page.
const ROWS: usize = 30;
/// Deliveries on one page.
const DELIVERIES: usize = 50;

/// Which page of the list: the query of the address.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default)]
pub struct Query {
    after: String,
}

/// Which deliveries, and what was just done.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default)]
pub struct OneQuery {
    after: String,
    outcome: String,
    notice: String,
}

/// A webhook as a row of the list, and as the head of its page.
#[derive(Debug)]
struct Row {
    id: WebhookId,
    name: String,
    url: String,
    team: String,
    events: String,
    enabled: bool,
    chip: &'static str,
    status: &'static str,
    created: String,
    created_at: String,
}

impl Row {
    fn new(row: &WebhookRow) -> Self {
        let spec = &row.spec;
        let (chip, status) = match (row.disabled, row.failing_since) {
            (Some(DisabledWhy::Gone), _) => ("failed", "Gone"),
            (Some(DisabledWhy::Failures), _) => ("failed", "Given up"),
            (Some(DisabledWhy::ByHand), _) => ("cancelled", "Disabled"),
            (None, Some(_)) => ("retrying", "Failing"),
            (None, None) => ("succeeded", "Enabled"),
        };
        let host = spec.url.split_once("://").map(|(_, rest)| rest.split(['/', '?']).next().unwrap_or_default());
        Self {
            id: row.id,
            name: spec.description.clone().or_else(|| host.map(str::to_owned)).unwrap_or_else(|| row.id.to_string()),
            url: spec.url.clone(),
            team: spec.team.clone().unwrap_or_else(|| "all teams".to_owned()),
            events: spec.events.iter().map(|pattern| pattern.as_str()).collect::<Vec<_>>().join(" "),
            enabled: row.disabled.is_none(),
            chip,
            status,
            created: format::moment(row.created_at),
            created_at: format::iso(row.created_at),
        }
    }
}

/// The page of all webhooks.
#[derive(Debug, Template)]
#[template(path = "webhooks.html")]
pub struct WebhooksPage {
    shell: Shell,
    rows: Vec<Row>,
    first: bool,
    next: Option<String>,
    csrf: String,
    may_write: bool,
    operator: bool,
}

impl WebhooksPage {
    fn new(visitor: &Visitor, query: &Query, found: &Found) -> Self {
        Self {
            shell: Shell::of(visitor),
            rows: found.webhooks.iter().map(Row::new).collect(),
            first: query.after.is_empty(),
            next: found.next.map(|next| format!("/webhooks?after={next}")),
            csrf: visitor.csrf.clone(),
            may_write: visitor.caller.may(Scope::WebhooksWrite),
            operator: visitor.caller.is_admin(),
        }
    }

    /// Lists with and without webhooks.
    pub fn samples() -> Vec<Self> {
        let visitor = Visitor::sample();
        let none = Found { webhooks: Vec::new(), next: None };
        let some = Found { webhooks: sample_rows(), next: None };
        let mut pages: Vec<_> =
            [none, some].iter().map(|found| Self::new(&visitor, &Query::default(), found)).collect();
        pages.iter_mut().for_each(|page| (page.may_write, page.operator) = (true, true));
        pages
    }
}

#[derive(Debug)]
struct Delivery {
    message: MessageId,
    kind: String,
    chip: &'static str,
    outcome: &'static str,
    answer: String,
    position: Option<u64>,
    last: String,
    last_at: String,
}

impl From<&DeliveryRow> for Delivery {
    fn from(row: &DeliveryRow) -> Self {
        let (chip, outcome) = match row.outcome {
            DeliveryOutcome::Delivered => ("succeeded", "Delivered"),
            DeliveryOutcome::Retrying => ("retrying", "Retrying"),
            DeliveryOutcome::GivenUp => ("failed", "Given up"),
            DeliveryOutcome::Skipped => ("cancelled", "Skipped"),
        };
        let answer = match (row.status, row.fault) {
            (Some(status), _) => format!("Answered {status}"),
            (None, Some(fault)) => format!("No answer: {}", fault.as_str()),
            (None, None) => "No answer".to_owned(),
        };
        let took = format::milliseconds(row.ms.into());
        let attempts = format::count(row.attempts.into(), "attempt", "attempts");
        let next = row.next_at.map_or_else(String::new, |next| format!("; again {}", format::moment(next)));
        Self {
            message: row.message,
            kind: row.kind.clone(),
            chip,
            outcome,
            answer: match row.outcome {
                DeliveryOutcome::Skipped => format!("Not wanted any more, {attempts}"),
                DeliveryOutcome::Delivered | DeliveryOutcome::Retrying | DeliveryOutcome::GivenUp => {
                    format!("{answer} after {took}, {attempts}{next}")
                }
            },
            position: row.position.map(|position| position.0),
            last: format::moment(row.last_at),
            last_at: format::iso(row.last_at),
        }
    }
}

#[derive(Debug)]
struct OutcomeLink {
    name: &'static str,
    href: String,
    chosen: bool,
}

/// The page of one webhook.
#[derive(Debug, Template)]
#[template(path = "webhook.html")]
pub struct WebhookPage {
    shell: Shell,
    row: Row,
    notice: Option<String>,
    /// Shown on the answer to the form that made it, and nowhere else.
    secret: Option<SecretString>,
    filter: Option<String>,
    standing: String,
    outcomes: Vec<OutcomeLink>,
    deliveries: Vec<Delivery>,
    next: Option<String>,
    csrf: String,
    may_write: bool,
}

impl WebhookPage {
    fn new(visitor: &Visitor, row: &WebhookRow, found: &DeliveryPage, outcome: Option<DeliveryOutcome>) -> Self {
        let within = |what: &str, names: &[String]| (!names.is_empty()).then(|| format!("{what} {}", names.join(", ")));
        let filters = [within("projects", &row.spec.projects), within("environments", &row.spec.environments)];
        let filters: Vec<_> = filters.into_iter().flatten().collect();
        let delivered = format::count(row.delivered, "delivery", "deliveries");
        let given_up = if row.given_up > 0 { format!(", {} given up", row.given_up) } else { String::new() };
        let failing = row.failing_since.map_or_else(String::new, |t| format!("; failing since {}", format::moment(t)));
        let signed = match row.previous_until.filter(|until| *until > jiff::Timestamp::now()) {
            Some(until) => format!("; signed with two secrets until {}", format::moment(until)),
            None => String::new(),
        };
        let id = row.id;
        let link = |name, wanted: Option<DeliveryOutcome>| OutcomeLink {
            name,
            href: wanted.map_or_else(
                || format!("/webhooks/{id}"),
                |wanted| format!("/webhooks/{id}?outcome={}", wanted.as_str()),
            ),
            chosen: wanted == outcome,
        };
        let next = found.next.map(|next| {
            let outcome = outcome.map_or_else(String::new, |outcome| format!("outcome={}&", outcome.as_str()));
            format!("/webhooks/{id}?{outcome}after={next}")
        });
        Self {
            shell: Shell::of(visitor),
            row: Row::new(row),
            notice: None,
            secret: None,
            filter: (!filters.is_empty()).then(|| format!("Only of {}", filters.join(" and "))),
            standing: format!("{delivered}{given_up}{failing}{signed}"),
            outcomes: vec![
                link("All", None),
                link("Delivered", Some(DeliveryOutcome::Delivered)),
                link("Retrying", Some(DeliveryOutcome::Retrying)),
                link("Given up", Some(DeliveryOutcome::GivenUp)),
                link("Skipped", Some(DeliveryOutcome::Skipped)),
            ],
            deliveries: found.deliveries.iter().map(Delivery::from).collect(),
            next,
            csrf: visitor.csrf.clone(),
            may_write: visitor.caller.may(Scope::WebhooksWrite),
        }
    }

    fn secret(&self) -> &str {
        self.secret.as_ref().map_or("", |secret| secret.expose_secret())
    }

    /// Webhooks in every state.
    pub fn samples() -> Vec<Self> {
        let visitor = Visitor::sample();
        let mut pages: Vec<_> = sample_rows()
            .iter()
            .map(|row| Self::new(&visitor, row, &DeliveryPage { deliveries: sample_deliveries(), next: Some(7) }, None))
            .collect();
        for page in &mut pages {
            page.may_write = true;
        }
        if let Some(first) = pages.first_mut() {
            first.secret = Some("whsec_AAAA".into());
            first.notice = Some("Delivered <b>".to_owned());
        }
        pages
    }
}

fn sample_rows() -> Vec<WebhookRow> {
    let at = jiff::Timestamp::UNIX_EPOCH;
    let row = |number, disabled, failing_since, description: Option<&str>| WebhookRow {
        id: WebhookId::from_uuid(uuid::Uuid::from_u128(number)),
        spec: WebhookSpec {
            team: (number > 1).then(|| "platform".to_owned()),
            url: "https://receiver.example/hook?<script>".to_owned(),
            events: "task.* campaign.finished".split(' ').filter_map(|text| text.parse().ok()).collect(),
            projects: vec!["infra".to_owned()],
            environments: Vec::new(),
            description: description.map(str::to_owned),
        },
        created_at: at,
        disabled,
        secret: 2,
        previous_until: Some(jiff::Timestamp::MAX),
        through: orchestra_events::Position(7),
        delivered_at: Some(at),
        failing_since,
        delivered: 41,
        given_up: 1,
    };
    vec![
        row(1, None, None, Some("For the <script>chat</script>")),
        row(2, None, Some(at), None),
        row(3, Some(DisabledWhy::Gone), None, None),
        row(4, Some(DisabledWhy::Failures), Some(at), None),
        row(5, Some(DisabledWhy::ByHand), None, None),
    ]
}

fn sample_deliveries() -> Vec<DeliveryRow> {
    use orchestra_events::webhook::Fault;
    let at = jiff::Timestamp::UNIX_EPOCH;
    let row = |number: u8, outcome, status, fault, next_at| DeliveryRow {
        message: MessageId::from_bytes([number; 16]),
        position: Some(orchestra_events::Position(number.into())).filter(|_| number > 1),
        kind: "task.succeeded".to_owned(),
        attempts: number.into(),
        first_at: at,
        last_at: at,
        ms: 12,
        outcome,
        status,
        fault,
        next_at,
    };
    vec![
        row(1, DeliveryOutcome::Delivered, Some(204), None, None),
        row(2, DeliveryOutcome::Retrying, None, Some(Fault::Timeout), Some(at)),
        row(3, DeliveryOutcome::GivenUp, Some(500), None, None),
    ]
}

/// `GET /webhooks`.
pub async fn show(app: web::Data<App>, visitor: Visitor, query: web::Query<Query>) -> Result<HttpResponse, PageError> {
    let after: Option<Cursor> = match query.after.as_str() {
        "" => None,
        text => Some(text.parse().map_err(|_| PageError::not_found())?),
    };
    app.caught_up().await?;
    let caller = visitor.caller.clone();
    let theirs = move |row: &WebhookRow| is_theirs(&caller, &row.spec);
    let found = app.read.webhooks(visitor.caller.only_team().map(Some), after, ROWS, theirs).await?;
    Ok(page(StatusCode::OK, &WebhooksPage::new(&visitor, &query, &found)))
}

fn notice(text: &str) -> Option<&'static str> {
    match text {
        "enabled" => Some("It goes on where it ended."),
        "disabled" => Some("Nothing is sent any more."),
        "replayed" => Some("The message is sent again."),
        _ => None,
    }
}

async fn one(app: &App, visitor: &Visitor, id: &str, query: &OneQuery) -> Result<WebhookPage, PageError> {
    let row = find(app, &visitor.caller, id).await?;
    let outcome = match query.outcome.as_str() {
        "" => None,
        text => Some(text.parse().map_err(|()| PageError::not_found())?),
    };
    let after = match query.after.as_str() {
        "" => None,
        text => Some(text.parse().map_err(|_| PageError::not_found())?),
    };
    let found = app.read.deliveries(row.id, outcome, after, DELIVERIES).await?;
    let notice = notice(&query.notice).map(str::to_owned);
    Ok(WebhookPage { notice, ..WebhookPage::new(visitor, &row, &found, outcome) })
}

/// `GET /webhooks/{id}`.
pub async fn show_one(
    app: web::Data<App>,
    visitor: Visitor,
    id: web::Path<String>,
    query: web::Query<OneQuery>,
) -> Result<HttpResponse, PageError> {
    Ok(page(StatusCode::OK, &one(&app, &visitor, &id, &query).await?))
}

/// What a new webhook is for.
#[derive(Deserialize)]
pub struct NewForm {
    #[serde(default)]
    csrf: String,
    #[serde(default)]
    url: String,
    #[serde(default)]
    events: String,
    #[serde(default)]
    team: String,
    #[serde(default)]
    description: String,
}

/// Reads the form; every fault with its field.
fn spec(form: &NewForm, visitor: &Visitor) -> Result<WebhookSpec, Problem> {
    let fault = |pointer: &str, detail: String| Problem::invalid(vec![Field { pointer: pointer.to_owned(), detail }]);
    let given = |text: &str| Some(text.trim().to_owned()).filter(|text| !text.is_empty());
    let team = match visitor.caller.only_team() {
        None => given(&form.team),
        Some(own) => Some(own),
    };
    if let Some(team) = &team {
        rules::name(team).map_err(|detail| fault("/team", detail))?;
    }
    let description = given(&form.description);
    let fits = |text: &String| text.len() <= MAX_DESCRIPTION && !text.chars().any(char::is_control);
    if !description.as_ref().is_none_or(fits) {
        return Err(fault("/description", format!("expected at most {MAX_DESCRIPTION} bytes on one line")));
    }
    let texts: Vec<_> = form.events.split([' ', ',']).filter(|text| !text.is_empty()).map(str::to_owned).collect();
    let events = patterns(&texts, &visitor.caller).map_err(|(_, detail)| fault("/events", detail))?;
    let url = form.url.trim().to_owned();
    let bounds = &visitor.caller.bounds;
    let (projects, environments) = (bounds.projects.clone(), bounds.environments.clone());
    let spec = WebhookSpec { team, url, events, projects, environments, description };
    check_bounds(&visitor.caller, &spec)?;
    Ok(spec)
}

/// `POST /webhooks`.
pub async fn create(
    app: web::Data<App>,
    visitor: Visitor,
    form: web::Form<NewForm>,
) -> Result<HttpResponse, PageError> {
    visitor.check_form(&form.csrf)?;
    let to_list = |error: PageError| error.back_to("/webhooks", "All webhooks");
    let spec = spec(&form, &visitor).map_err(|problem| to_list(problem.into()))?;
    let who = actor(&visitor.caller, spec.team.as_deref());
    let service = app.webhooks()?;
    let made = service.create_webhook(NewWebhook { spec, idempotency: None }, who).await;
    let made = made.map_err(|error| to_list(Problem::from(error).into()))?;
    let shown = one(&app, &visitor, &made.id.to_string(), &OneQuery::default()).await?;
    Ok(page(StatusCode::OK, &WebhookPage { secret: made.secret, ..shown }))
}

fn back(id: WebhookId, notice: &str) -> HttpResponse {
    HttpResponse::SeeOther().insert_header((header::LOCATION, format!("/webhooks/{id}?notice={notice}"))).finish()
}

/// The webhook of a form, once the visitor has shown that the form is theirs, and who they are to its team.
async fn admitted(app: &App, visitor: &Visitor, id: &str, csrf: &str) -> Result<(WebhookId, Actor), PageError> {
    visitor.check_form(csrf)?;
    let row = find(app, &visitor.caller, id).await?;
    Ok((row.id, actor(&visitor.caller, row.spec.team.as_deref())))
}

/// The same for what has something sent, or changes what it is signed with.
async fn admitted_to_send(app: &App, visitor: &Visitor, id: &str, csrf: &str) -> Result<(WebhookId, Actor), PageError> {
    visitor.check_form(csrf)?;
    let row = find(app, &visitor.caller, id).await?;
    check_reading(&visitor.caller, &row.spec).map_err(with_way_back(row.id))?;
    Ok((row.id, actor(&visitor.caller, row.spec.team.as_deref())))
}

fn with_way_back<E: Into<PageError>>(id: WebhookId) -> impl Fn(E) -> PageError {
    move |error| error.into().back_to(format!("/webhooks/{id}"), "Back to the webhook")
}

/// `POST /webhooks/{id}/enable`.
pub async fn enable(
    app: web::Data<App>,
    visitor: Visitor,
    id: web::Path<String>,
    form: web::Form<Plain>,
) -> Result<HttpResponse, PageError> {
    let (id, who) = admitted_to_send(&app, &visitor, &id, form.csrf()).await?;
    app.webhooks()?.enable_webhook(id, true, who).await.map_err(with_way_back(id))?;
    Ok(back(id, "enabled"))
}

/// `POST /webhooks/{id}/disable`.
pub async fn disable(
    app: web::Data<App>,
    visitor: Visitor,
    id: web::Path<String>,
    form: web::Form<Plain>,
) -> Result<HttpResponse, PageError> {
    let (id, who) = admitted(&app, &visitor, &id, form.csrf()).await?;
    app.webhooks()?.enable_webhook(id, false, who).await.map_err(with_way_back(id))?;
    Ok(back(id, "disabled"))
}

/// `POST /webhooks/{id}/test`.
pub async fn test(
    app: web::Data<App>,
    visitor: Visitor,
    id: web::Path<String>,
    form: web::Form<Plain>,
) -> Result<HttpResponse, PageError> {
    let (id, _) = admitted_to_send(&app, &visitor, &id, form.csrf()).await?;
    let attempt = app.webhooks()?.test_webhook(id).await.map_err(with_way_back(id))?;
    let answer = match (attempt.outcome.status(), attempt.outcome.fault()) {
        (Some(status), _) => format!("answered {status}"),
        (None, Some(fault)) => format!("no answer: {}", fault.as_str()),
        (None, None) => "no answer".to_owned(),
    };
    let took = format::milliseconds(attempt.ms.into());
    let shown = one(&app, &visitor, &id.to_string(), &OneQuery::default()).await?;
    let notice = Some(format!("The test was sent: {answer} after {took}."));
    Ok(page(StatusCode::OK, &WebhookPage { notice, ..shown }))
}

/// `POST /webhooks/{id}/secret`.
pub async fn rotate(
    app: web::Data<App>,
    visitor: Visitor,
    id: web::Path<String>,
    form: web::Form<Plain>,
) -> Result<HttpResponse, PageError> {
    let (id, who) = admitted_to_send(&app, &visitor, &id, form.csrf()).await?;
    let secret = app.webhooks()?.rotate_webhook(id, DEFAULT_OVERLAP, who).await.map_err(with_way_back(id))?;
    let shown = one(&app, &visitor, &id.to_string(), &OneQuery::default()).await?;
    Ok(page(StatusCode::OK, &WebhookPage { secret: Some(secret), ..shown }))
}

/// Which message is sent again.
#[derive(Deserialize)]
pub struct ReplayForm {
    #[serde(default)]
    csrf: String,
    #[serde(default)]
    message: String,
}

/// `POST /webhooks/{id}/replay`.
pub async fn replay(
    app: web::Data<App>,
    visitor: Visitor,
    id: web::Path<String>,
    form: web::Form<ReplayForm>,
) -> Result<HttpResponse, PageError> {
    let (id, who) = admitted_to_send(&app, &visitor, &id, &form.csrf).await?;
    let message = form.message.parse::<MessageId>().map_err(|error| {
        let fault = Field { pointer: "/message".to_owned(), detail: error.to_string() };
        with_way_back(id)(Problem::invalid(vec![fault]))
    })?;
    let position = position_of(&app, id, message).await.map_err(with_way_back(id))?;
    app.webhooks()?.replay_webhook(id, position, position, who).await.map_err(with_way_back(id))?;
    Ok(back(id, "replayed"))
}

/// `POST /webhooks/{id}/remove`.
pub async fn remove(
    app: web::Data<App>,
    visitor: Visitor,
    id: web::Path<String>,
    form: web::Form<Plain>,
) -> Result<HttpResponse, PageError> {
    let (id, who) = admitted(&app, &visitor, &id, form.csrf()).await?;
    app.webhooks()?.remove_webhook(id, who).await.map_err(with_way_back(id))?;
    Ok(HttpResponse::SeeOther().insert_header((header::LOCATION, "/webhooks")).finish())
}
