//! `/campaigns` and `/campaigns/{id}`: how far each is, what it costs, and where each of its tasks stands.

use std::collections::HashMap;

use actix_web::http::{StatusCode, header};
use actix_web::{HttpResponse, web};
use askama::Template;
use orchestra_events::campaign::{CampaignStatus, Progress, child_id};
use orchestra_events::key::Scope;
use orchestra_events::projections::{CampaignFilter, CampaignPage as Found, CampaignRow, Cursor};
use orchestra_events::task::TaskResource;
use orchestra_events::{Actor, CampaignId, TaskId};
use serde::Deserialize;

use super::actions::{Certain, Plain, Secrets};
use super::error::PageError;
use super::format;
use super::html::Html;
use super::panels;
use super::shell::{Shell, Visitor, page};
use super::timeline::{Link, capitalised};
use crate::App;
use crate::api::campaign_resource::reason;
use crate::fragments::rows::{status_text, title};
use crate::fragments::{BudgetBar, Fragments};
use crate::problem::{Field, Problem};

/// Campaigns on one page.
pub const ROWS: usize = 30;
/// The width of a bar in the units of its picture.
const BAR: u64 = 1_000;

/// Which page of the list: the query of the address.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default)]
pub struct Query {
    after: String,
}

fn status_words(status: CampaignStatus) -> &'static str {
    match status {
        CampaignStatus::Running => "Running",
        CampaignStatus::Paused => "Paused",
        CampaignStatus::Finished => "Finished",
        CampaignStatus::Cancelled => "Cancelled",
    }
}

/// The chip's colour: the same as that of a task which stands so.
fn chip(status: CampaignStatus, progress: Progress) -> &'static str {
    match status {
        CampaignStatus::Running => "running",
        CampaignStatus::Paused => "awaiting-credentials",
        CampaignStatus::Finished if progress.failed > 0 => "failed",
        CampaignStatus::Finished => "succeeded",
        CampaignStatus::Cancelled => "cancelled",
    }
}

/// How far a campaign is, as a bar and in words.
#[derive(Debug)]
struct ProgressBar {
    ended: u64,
    running: u64,
    words: String,
}

impl From<Progress> for ProgressBar {
    fn from(progress: Progress) -> Self {
        let width = |count: u32| u64::from(count) * BAR / u64::from(progress.total().max(1));
        let parts = [
            (progress.succeeded, "succeeded"),
            (progress.failed, "failed"),
            (progress.cancelled, "cancelled"),
            (progress.running, "running"),
            (progress.waiting, "waiting"),
        ];
        let named = parts.iter().filter(|(count, _)| *count > 0).map(|(count, name)| format!("{count} {name}"));
        let words = named.collect::<Vec<_>>().join(", ");
        Self { ended: width(progress.ended()), running: width(progress.running), words }
    }
}

/// A campaign as a row of the list, and as the head of its page.
#[derive(Debug)]
struct Row {
    id: String,
    name: String,
    task: String,
    team: String,
    model: String,
    chip: &'static str,
    status: &'static str,
    reason: String,
    repos: String,
    bar: ProgressBar,
    money: Html,
    created: String,
    created_at: String,
}

impl Row {
    fn new(row: &CampaignRow, fragments: &Fragments) -> Self {
        let CampaignRow { campaign, spec, cost, .. } = row;
        let budget = BudgetBar::new(*cost, orchestra_events::NanoUsd::ZERO, spec.budget.max_nano_usd);
        Self {
            id: campaign.id.to_string(),
            name: title(&spec.name),
            task: title(&spec.template.task),
            team: spec.template.team.clone(),
            model: spec.template.model.clone(),
            chip: chip(campaign.status, campaign.progress),
            status: status_words(campaign.status),
            reason: capitalised(&campaign.reason),
            repos: format::count(campaign.progress.total().into(), "repository", "repositories"),
            bar: campaign.progress.into(),
            money: fragments.budget_bar(&budget),
            created: format::moment(campaign.created_at),
            created_at: format::iso(campaign.created_at),
        }
    }
}

/// The list itself, which the stream replaces.
#[derive(Debug, Template)]
#[template(path = "campaign_list.html")]
struct List {
    rows: Vec<Row>,
}

/// The page of all campaigns.
#[derive(Debug, Template)]
#[template(path = "campaigns.html")]
pub struct CampaignsPage {
    shell: Shell,
    live: String,
    list: Html,
    first: bool,
    next: Option<String>,
}

async fn find(app: &App, visitor: &Visitor, query: &Query) -> Result<Found, PageError> {
    let after: Option<Cursor> = match query.after.as_str() {
        "" => None,
        text => Some(text.parse().map_err(|_| {
            let field = Field { pointer: "?after".to_owned(), detail: "not a place in this list".to_owned() };
            PageError::from(Problem::invalid_query(vec![field])).back_to("/campaigns", "All campaigns")
        })?),
    };
    let filter =
        CampaignFilter { team: visitor.caller.only_team(), status: None, bounds: (*visitor.caller.bounds).clone() };
    Ok(app.read.campaigns(filter, after, ROWS).await?)
}

/// The list as it stands: the page's, and what its stream sends.
pub async fn list_panel(app: &App, visitor: &Visitor, query: &Query) -> Result<Html, PageError> {
    let found = find(app, visitor, query).await?;
    Ok(render_list(&found, &app.dashboard.fragments))
}

fn render_list(found: &Found, fragments: &Fragments) -> Html {
    panels::render(&List { rows: found.campaigns.iter().map(|row| Row::new(row, fragments)).collect() })
}

impl CampaignsPage {
    fn new(visitor: &Visitor, fragments: &Fragments, query: &Query, found: &Found, position: u64) -> Self {
        // A cursor is digits and letters; anything else was refused before.
        let after = if query.after.is_empty() { String::new() } else { format!("after={}&", query.after) };
        Self {
            shell: Shell::of(visitor),
            live: format!("/live/campaigns?{after}position={position}"),
            list: render_list(found, fragments),
            first: query.after.is_empty(),
            next: found.next.map(|next| format!("/campaigns?after={next}")),
        }
    }

    /// Lists with and without campaigns.
    pub fn samples() -> Vec<Self> {
        let (visitor, fragments) = (Visitor::sample(), Fragments::embedded());
        let none = Found { campaigns: Vec::new(), next: None };
        let some = Found { campaigns: super::sample::campaigns(), next: None };
        [none, some].iter().map(|found| Self::new(&visitor, &fragments, &Query::default(), found, 7)).collect()
    }
}

/// `GET /campaigns`.
pub async fn show(app: web::Data<App>, visitor: Visitor, query: web::Query<Query>) -> Result<HttpResponse, PageError> {
    // Taken before the campaigns are read: what happens in between, the stream shows again.
    let position = app.read.checkpoint().0;
    let found = find(&app, &visitor, &query).await?;
    Ok(page(StatusCode::OK, &CampaignsPage::new(&visitor, &app.dashboard.fragments, &query, &found, position)))
}

/// One repository of a campaign.
#[derive(Debug)]
struct Child {
    repo: String,
    branch: String,
    href: Option<String>,
    chip: &'static str,
    status: &'static str,
    note: String,
    cost: String,
    pulls: Vec<Link>,
}

/// What changes on a campaign's page while it is looked at.
#[derive(Debug, Template)]
#[template(path = "campaign_body.html")]
struct Body {
    row: Row,
    reserved: Option<String>,
    children: Vec<Child>,
    csrf: String,
    can_cancel: bool,
    can_retry: bool,
    can_erase: bool,
    erased: Option<String>,
}

impl Body {
    fn new(visitor: &Visitor, fragments: &Fragments, found: &CampaignRow, tasks: Vec<TaskResource>) -> Self {
        let id = found.campaign.id;
        let reason = capitalised(&reason(&found.campaign, &tasks));
        let mut tasks: HashMap<TaskId, TaskResource> = tasks.into_iter().map(|task| (task.id, task)).collect();
        let children = (0..).zip(&found.spec.repos).map(|(index, repo)| {
            let task = tasks.remove(&child_id(id, index));
            let task = task.as_ref();
            let instead = found.campaign.instead_of_its_task(index, task.is_some());
            let (chip, status) = match instead {
                Some("cancelled") => ("cancelled", "Cancelled"),
                Some(_) => ("queued", "Waiting"),
                None => task.map_or(("queued", "Waiting"), |task| (task.status.as_str(), status_text(task.status))),
            };
            Child {
                repo: repo.repo.to_string(),
                branch: repo.branch.clone(),
                href: task.map(|task| format!("/tasks/{}", task.id)),
                chip,
                status,
                note: task.filter(|_| instead.is_none()).map_or_else(String::new, |task| capitalised(&task.reason)),
                cost: task.map_or_else(String::new, |task| format::usd(task.cost)),
                pulls: task.map_or_else(Vec::new, panels::pull_requests),
            }
        });
        let children = children.collect();
        let open = !found.campaign.is_over();
        let failed = found.campaign.progress.failed > 0;
        let status = found.campaign.status;
        Self {
            row: Row { reason, ..Row::new(found, fragments) },
            reserved: None,
            children,
            csrf: visitor.csrf.clone(),
            can_cancel: open && status != CampaignStatus::Cancelled && visitor.caller.may(Scope::CampaignsCancel),
            can_retry: (failed || status == CampaignStatus::Paused)
                && status != CampaignStatus::Cancelled
                && found.campaign.erased_at.is_none()
                && visitor.caller.may(Scope::CampaignsCreate),
            can_erase: !open && found.campaign.erased_at.is_none() && visitor.caller.may(Scope::ContentErase),
            erased: found.campaign.erased_at.map(format::moment),
        }
    }
}

/// The page of one campaign.
#[derive(Debug, Template)]
#[template(path = "campaign.html")]
pub struct CampaignPage {
    shell: Shell,
    name: String,
    live: String,
    body: Html,
    id: CampaignId,
    csrf: String,
    /// Outside what is shown anew while it is looked at, so that nobody's typing is lost.
    may_supply: bool,
}

impl CampaignPage {
    fn new(visitor: &Visitor, row: &CampaignRow, body: Html, position: u64) -> Self {
        let id = row.campaign.id;
        Self {
            shell: Shell::of(visitor),
            name: title(&row.spec.name),
            live: format!("/campaigns/{id}/live?position={position}"),
            body,
            id,
            csrf: visitor.csrf.clone(),
            may_supply: visitor.caller.may(Scope::CampaignsCreate)
                && row.campaign.status != CampaignStatus::Cancelled
                && (!row.campaign.is_over() || row.campaign.progress.failed > 0),
        }
    }

    /// Campaigns at every stage.
    pub fn samples() -> Vec<Self> {
        let (visitor, fragments) = (Visitor::sample(), Fragments::embedded());
        let page = |row: CampaignRow| {
            let body = panels::render(&Body::new(&visitor, &fragments, &row, super::sample::children(&row)));
            Self::new(&visitor, &row, body, 7)
        };
        super::sample::campaigns().into_iter().map(page).collect()
    }
}

/// A campaign that the visitor may see.
async fn visible(app: &App, visitor: &Visitor, id: &str) -> Result<CampaignRow, PageError> {
    Ok(crate::api::campaigns::visible(app, &visitor.caller, id).await?)
}

/// A campaign's panel as it stands: the page's, and what its stream sends.
pub async fn campaign_panel(app: &App, visitor: &Visitor, id: &str) -> Result<Html, PageError> {
    let row = visible(app, visitor, id).await?;
    body(app, visitor, &row).await
}

async fn body(app: &App, visitor: &Visitor, row: &CampaignRow) -> Result<Html, PageError> {
    let tasks = app.read.children(row.campaign.id).await?;
    let mut body = Body::new(visitor, &app.dashboard.fragments, row, tasks);
    let account = app.campaigns.account(&row.spec.template.team, row.campaign.id).await;
    let reserved = account.map_err(Problem::from)?.map(|account| account.reserved.nano_usd);
    body.reserved = reserved.filter(|reserved| reserved.nanos() > 0).map(format::usd);
    Ok(panels::render(&body))
}

/// `GET /campaigns/{id}`.
pub async fn show_one(app: web::Data<App>, visitor: Visitor, id: web::Path<String>) -> Result<HttpResponse, PageError> {
    let position = app.read.checkpoint().0;
    let row = visible(&app, &visitor, &id).await?;
    let body = body(&app, &visitor, &row).await?;
    Ok(page(StatusCode::OK, &CampaignPage::new(&visitor, &row, body, position)))
}

fn back(id: CampaignId) -> HttpResponse {
    HttpResponse::SeeOther().insert_header((header::LOCATION, format!("/campaigns/{id}"))).finish()
}

/// The campaign of a form, once the visitor has shown that the form is theirs, and who they are to its team.
async fn admitted(app: &App, visitor: &Visitor, id: &str, csrf: &str) -> Result<(CampaignId, Actor), PageError> {
    visitor.check_form(csrf)?;
    let row = visible(app, visitor, id).await?;
    Ok((row.campaign.id, visitor.caller.actor_for(&row.spec.template.team)))
}

fn with_way_back<E: Into<PageError>>(id: CampaignId) -> impl Fn(E) -> PageError {
    move |error| error.into().back_to(format!("/campaigns/{id}"), "Back to the campaign")
}

/// `POST /campaigns/{id}/cancel`.
pub async fn cancel(
    app: web::Data<App>,
    visitor: Visitor,
    id: web::Path<String>,
    form: web::Form<Plain>,
) -> Result<HttpResponse, PageError> {
    let (id, actor) = admitted(&app, &visitor, &id, form.csrf()).await?;
    app.campaigns.cancel_campaign(id, None, actor).await.map_err(with_way_back(id))?;
    Ok(back(id))
}

/// `POST /campaigns/{id}/erase`.
pub async fn erase(
    app: web::Data<App>,
    visitor: Visitor,
    id: web::Path<String>,
    form: web::Form<Certain>,
) -> Result<HttpResponse, PageError> {
    let (id, actor) = admitted(&app, &visitor, &id, form.csrf()).await?;
    form.check().map_err(with_way_back(id))?;
    app.campaigns.erase_campaign_content(id, actor).await.map_err(with_way_back(id))?;
    Ok(back(id))
}

/// `POST /campaigns/{id}/retry`.
pub async fn retry(
    app: web::Data<App>,
    visitor: Visitor,
    id: web::Path<String>,
    form: web::Form<Secrets>,
) -> Result<HttpResponse, PageError> {
    let (id, actor) = admitted(&app, &visitor, &id, form.csrf()).await?;
    let given = form.into_inner().into_credentials();
    app.campaigns.retry_campaign(id, given, actor).await.map_err(with_way_back(id))?;
    Ok(back(id))
}

/// `POST /campaigns/{id}/credentials`.
pub async fn credentials(
    app: web::Data<App>,
    visitor: Visitor,
    id: web::Path<String>,
    form: web::Form<Secrets>,
) -> Result<HttpResponse, PageError> {
    let (id, actor) = admitted(&app, &visitor, &id, form.csrf()).await?;
    let given = form.into_inner().into_credentials();
    app.campaigns.supply_campaign(id, given, actor).await.map_err(with_way_back(id))?;
    Ok(back(id))
}
