//! Starting, listing, reading, cancelling and retrying campaigns.

use actix_web::http::header;
use actix_web::{HttpRequest, HttpResponse, web};
use futures_util::future::LocalBoxFuture;
use orchestra_actors::service::{Erased, Idempotency};
use orchestra_events::campaign::CampaignStatus;
use orchestra_events::projections::tasks::MAX_PAGE;
use orchestra_events::projections::{CampaignFilter, CampaignRow, Cursor};

use super::campaign_resource::{CampaignList, CampaignRequest, CampaignView};
use super::query::Parameters;
use super::repeat::Subject;
use super::tasks::{DEFAULT_PAGE, idempotency_key};
use super::{body, campaign_payload};
use crate::App;
use crate::auth::Caller;
use crate::problem::{Problem, ProblemBody};

/// A campaign that this caller may see, with everything that happened to it before this was called.
pub async fn visible(app: &App, caller: &Caller, id: &str) -> Result<CampaignRow, Problem> {
    let id = id.parse().map_err(|_| Problem::no_such_campaign())?;
    app.caught_up().await?;
    let row = app.read.campaign(id).await?.ok_or_else(Problem::no_such_campaign)?;
    if caller.sees_campaign(&row.spec) { Ok(row) } else { Err(Problem::no_such_campaign()) }
}

async fn whole(app: &App, row: CampaignRow) -> Result<CampaignView, Problem> {
    let id = row.campaign.id;
    let tasks = app.read.children(id).await?;
    let account = app.campaigns.account(&row.spec.template.team, id).await?;
    Ok(CampaignView::whole(row, tasks, account))
}

/// The campaign as a repeat of a request about it sees it.
pub fn show(
    app: web::Data<App>,
    caller: Caller,
    subject: Subject,
) -> LocalBoxFuture<'static, Result<HttpResponse, Problem>> {
    Box::pin(async move {
        let row = visible(&app, &caller, &subject.id).await?;
        Ok(HttpResponse::Ok().json(whole(&app, row).await?))
    })
}

async fn as_it_stands(app: &App, caller: &Caller, id: &str) -> Result<HttpResponse, Problem> {
    let row = visible(app, caller, id).await?;
    Ok(HttpResponse::Accepted().json(whole(app, row).await?))
}

/// Starts a campaign: one sentence, many repositories, a task for each.
///
/// Answers as soon as it is durable. With an `Idempotency-Key` a repeat of the same request returns the campaign that
/// the first one made.
#[utoipa::path(post, path = "/v1/campaigns", tag = "campaigns", operation_id = "createCampaign",
    request_body(content = CampaignRequest, example = json!({
        "name": "Provider 6", "repos": ["acme/api", {"repo": "acme/infra", "base": "main"}],
        "task": "Bump terraform-aws-provider from 5.x to 6.x; update breaking calls",
        "model": "claude-sonnet-4-6", "team": "platform", "budget": {"maxUsd": 20.00}, "concurrency": 4,
    })),
    params(("Idempotency-Key" = Option<String>, Header, description = "Makes a repeat of this request do nothing new")),
    responses(
        (status = 202, description = "Accepted", body = CampaignView, headers(("Location" = String, description = "The campaign"))),
        (status = 402, description = "A budget above it is used up", body = ProblemBody, content_type = "application/problem+json"),
        (status = 422, description = "Fields that do not do, or a reused Idempotency-Key", body = ProblemBody, content_type = "application/problem+json"),
    ))]
pub async fn create(
    app: web::Data<App>,
    caller: Caller,
    request: HttpRequest,
    payload: web::Payload,
) -> Result<HttpResponse, Problem> {
    let key = idempotency_key(&request)?;
    let mut new = campaign_payload::new_campaign(&body::json(&request, payload).await?, &caller)?;
    new.task.idempotency = key.map(|key| Idempotency {
        owner: caller.who.to_string(),
        key,
        request_hash: campaign_payload::request_hash(&new),
    });
    let actor = caller.actor_for(&new.task.team);
    let accepted = app.campaigns.create_campaign(new, actor).await?;
    let row = visible(&app, &caller, &accepted.id.to_string()).await?;
    let campaign = whole(&app, row).await?;
    Ok(HttpResponse::Accepted().insert_header((header::LOCATION, campaign.path().to_owned())).json(campaign))
}

/// Lists campaigns, newest first.
#[utoipa::path(get, path = "/v1/campaigns", tag = "campaigns", operation_id = "listCampaigns",
    params(
        ("team" = Option<String>, Query),
        ("status" = Option<super::openapi::CampaignStatusName>, Query),
        ("cursor" = Option<String>, Query, description = "`nextCursor` of the page before"),
        ("limit" = Option<u32>, Query, minimum = 1, maximum = 200),
    ),
    responses((status = 200, description = "A page of campaigns", body = CampaignList)))]
pub async fn list(app: web::Data<App>, caller: Caller, request: HttpRequest) -> Result<HttpResponse, Problem> {
    let mut query = Parameters::of(&request)?;
    let team = query.text("team");
    let known = CampaignStatus::ALL.map(CampaignStatus::as_str).join(", ");
    let status =
        query.one_of("status", |text| CampaignStatus::ALL.into_iter().find(|status| status.as_str() == text), &known);
    let cursor = query.parsed::<Cursor>("cursor", "the nextCursor of the page before");
    let limit = query.limit(DEFAULT_PAGE, MAX_PAGE);
    query.finish()?;
    let Some(team) = caller.narrow(team) else {
        // Another team's campaigns do not exist for this caller.
        return Ok(HttpResponse::Ok().json(CampaignList { data: Vec::new(), next_cursor: None }));
    };
    app.caught_up().await?;
    let page =
        app.read.campaigns(CampaignFilter { team, status, bounds: (*caller.bounds).clone() }, cursor, limit).await?;
    Ok(HttpResponse::Ok().json(CampaignList {
        data: page.campaigns.into_iter().map(CampaignView::from).collect(),
        next_cursor: page.next.map(|cursor| cursor.to_string()),
    }))
}

/// Reads a campaign, with each of its repositories.
#[utoipa::path(get, path = "/v1/campaigns/{id}", tag = "campaigns", operation_id = "getCampaign",
    params(("id" = String, Path)),
    responses((status = 200, description = "The campaign", body = CampaignView),
        (status = 404, description = "No such campaign, or another team's", body = ProblemBody, content_type = "application/problem+json")))]
pub async fn get(
    app: web::Data<App>,
    caller: Caller,
    id: web::Path<String>,
    request: HttpRequest,
) -> Result<HttpResponse, Problem> {
    Parameters::of(&request)?.finish()?;
    let row = visible(&app, &caller, &id).await?;
    Ok(HttpResponse::Ok().json(whole(&app, row).await?))
}

/// Stops a campaign: no further task is begun, and those that run are cancelled.
#[utoipa::path(post, path = "/v1/campaigns/{id}/cancel", tag = "campaigns", operation_id = "cancelCampaign",
    params(("id" = String, Path)), request_body(content = Option<super::openapi::CancelRequest>, example = json!({"reason": "not needed any more"})),
    responses((status = 202, description = "It is being stopped, or was already", body = CampaignView),
        (status = 409, description = "It is over", body = ProblemBody, content_type = "application/problem+json")))]
pub async fn cancel(
    app: web::Data<App>,
    caller: Caller,
    id: web::Path<String>,
    request: HttpRequest,
    payload: web::Payload,
) -> Result<HttpResponse, Problem> {
    let row = visible(&app, &caller, &id).await?;
    let reason = body::reason(&request, payload).await?;
    let actor = caller.actor_for(&row.spec.template.team);
    app.campaigns.cancel_campaign(row.campaign.id, reason, actor).await?;
    as_it_stands(&app, &caller, &id).await
}

/// Erases what was asked for, said and written in a campaign and all its tasks, which must have ended. It cannot be
/// undone, and a repeat is harmless.
#[utoipa::path(delete, path = "/v1/campaigns/{id}/content", tag = "campaigns", operation_id = "eraseCampaignContent",
    params(("id" = String, Path)),
    responses((status = 202, description = "It is promised, and goes on by itself", body = CampaignView),
        (status = 204, description = "It is gone"),
        (status = 409, description = "The campaign or one of its tasks is still going on", body = ProblemBody, content_type = "application/problem+json")))]
pub async fn erase(app: web::Data<App>, caller: Caller, id: web::Path<String>) -> Result<HttpResponse, Problem> {
    let row = visible(&app, &caller, &id).await?;
    let actor = caller.actor_for(&row.spec.template.team);
    match app.campaigns.erase_campaign_content(row.campaign.id, actor).await? {
        Erased::Done => Ok(HttpResponse::NoContent().finish()),
        Erased::UnderWay => as_it_stands(&app, &caller, &id).await,
    }
}

/// Does again what failed, and nothing else; a paused campaign goes on. New credentials may come along.
#[utoipa::path(post, path = "/v1/campaigns/{id}/retry", tag = "campaigns", operation_id = "retryCampaign",
    params(("id" = String, Path)), request_body(content = Option<super::openapi::RetryRequest>),
    responses((status = 202, description = "What failed is done again", body = CampaignView),
        (status = 409, description = "Nothing failed, or it was cancelled", body = ProblemBody, content_type = "application/problem+json")))]
pub async fn retry(
    app: web::Data<App>,
    caller: Caller,
    id: web::Path<String>,
    request: HttpRequest,
    payload: web::Payload,
) -> Result<HttpResponse, Problem> {
    let row = visible(&app, &caller, &id).await?;
    let given = body::optional_credentials(&request, payload).await?;
    let actor = caller.actor_for(&row.spec.template.team);
    app.campaigns.retry_campaign(row.campaign.id, given, actor).await?;
    as_it_stands(&app, &caller, &id).await
}

/// Replaces the secrets of a campaign and of all its tasks. They are held in memory only.
#[utoipa::path(put, path = "/v1/campaigns/{id}/credentials", tag = "campaigns", operation_id = "putCampaignCredentials",
    params(("id" = String, Path)), request_body(content = super::openapi::CredentialsRequest, example = json!({"git": {"token": "ghp_example"}})),
    responses((status = 202, description = "The campaign and its tasks go on with them", body = CampaignView),
        (status = 409, description = "It is over", body = ProblemBody, content_type = "application/problem+json")))]
pub async fn credentials(
    app: web::Data<App>,
    caller: Caller,
    id: web::Path<String>,
    request: HttpRequest,
    payload: web::Payload,
) -> Result<HttpResponse, Problem> {
    let row = visible(&app, &caller, &id).await?;
    let given = body::credentials(&request, payload).await?;
    let actor = caller.actor_for(&row.spec.template.team);
    app.campaigns.supply_campaign(row.campaign.id, given, actor).await?;
    as_it_stands(&app, &caller, &id).await
}
