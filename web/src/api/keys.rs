//! API keys: issued, listed, rotated and revoked. A key's text is in the answer that makes it, and nowhere afterwards.
//!
//! Nobody hands on more than they have: scopes, team, bounds, limits and the time until which they hold are the caller's
//! own or less. What a request leaves out is as the caller's own.

use std::time::Duration;

use actix_web::http::header;
use actix_web::{HttpRequest, HttpResponse, web};
use futures_util::future::LocalBoxFuture;
use ipnet::IpNet;
use jiff::Timestamp;
use orchestra_events::KeyId;
use orchestra_events::key::{KeyGrant, KeyLimits, KeyResource, Pattern, Refusal, Scope};
use secrecy::{ExposeSecret, SecretString};
use serde::Serialize;
use serde_json::value::RawValue;
use utoipa::ToSchema;

use super::body;
use super::fields::{Faults, Object};
use super::key_payload::new_key;
use super::query::Parameters;
use super::repeat::Subject;
use crate::App;
use crate::auth::issuing::{KeyError, NewKey, issue, revoke_key, rotate_key};
use crate::auth::keys::KeyPage;
use crate::auth::{Caller, Who};
use crate::problem::{Code, Field, Problem, ProblemBody};

/// Keys on a page when the caller does not say.
pub const DEFAULT_PAGE: usize = 50;
/// Most keys on a page.
pub const MAX_PAGE: usize = 200;
/// Keys of one team that work at the same time, and as many of no team: each is kept in memory and asked for its rights.
pub const MAX_STANDING: usize = 1_000;
/// How long the text before a rotation works on, when the request does not say.
pub const OVERLAP: Duration = Duration::from_secs(60 * 60);
/// The longest that it can: whoever needs longer is served better by a second key.
pub const MAX_OVERLAP: Duration = Duration::from_secs(30 * 24 * 60 * 60);

/// What a key is good for within its team. An empty list bounds nothing.
#[derive(Debug, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
#[schema(as = KeyBounds)]
pub struct BoundsView {
    projects: Vec<String>,
    environments: Vec<String>,
    task_types: Vec<String>,
    /// Patterns of `forge:owner/name`, in which `*` stands for any characters.
    repos: Vec<String>,
    /// Patterns of the names of models.
    models: Vec<String>,
    /// Networks such as `10.0.0.0/8`.
    networks: Vec<String>,
}

/// How much may be asked with a key at once; `null`: as the server's configuration says.
#[derive(Debug, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
#[schema(as = KeyLimits)]
pub struct LimitsView {
    requests_per_minute: Option<u32>,
    burst: Option<u32>,
    concurrent_tasks: Option<u32>,
}

/// What a key is worth.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, ToSchema)]
#[serde(rename_all = "kebab-case")]
pub enum KeyStatus {
    /// It works.
    Active,
    /// Its time is over.
    Expired,
    /// It was taken back.
    Revoked,
}

/// A key. Neither its text nor the hash of it is in it.
#[derive(Debug, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
#[schema(as = Key)]
pub struct KeyView {
    id: String,
    name: String,
    status: KeyStatus,
    /// The team it acts for; `null` for an operator's key.
    team: Option<String>,
    /// The environment in its visible prefix.
    environment: String,
    #[schema(value_type = Vec<String>)]
    scopes: Vec<Scope>,
    bounds: BoundsView,
    limits: LimitsView,
    #[schema(format = "date-time")]
    created_at: String,
    /// The id of who issued it.
    created_by: String,
    #[schema(format = "date-time")]
    expires_at: Option<String>,
    #[schema(format = "date-time")]
    rotated_at: Option<String>,
    /// Until when the text before the last rotation works, where it still does.
    #[schema(format = "date-time")]
    previous_until: Option<String>,
    /// To the hour: a busy key's use is noted once in an hour.
    #[schema(format = "date-time")]
    last_used_at: Option<String>,
    /// The address it was last used from.
    last_used_from: Option<String>,
    #[schema(format = "date-time")]
    revoked_at: Option<String>,
}

impl KeyView {
    fn of(resource: &KeyResource, now: Timestamp) -> Self {
        let KeyResource { id, key, created_at, created_by, rotated_at, revoked_at, .. } = resource;
        let KeyGrant { name, team, environment, scopes, bounds, expires_at, limits, secret_sha256: _ } = &key.grant;
        let previous = key.previous.as_ref().filter(|previous| key.stands(now) && now < previous.until);
        Self {
            id: id.to_string(),
            name: name.clone(),
            status: match (key.revoked, key.expired(now)) {
                (true, _) => KeyStatus::Revoked,
                (false, true) => KeyStatus::Expired,
                (false, false) => KeyStatus::Active,
            },
            team: team.clone(),
            environment: environment.clone(),
            scopes: scopes.clone(),
            bounds: BoundsView {
                projects: bounds.projects.clone(),
                environments: bounds.environments.clone(),
                task_types: bounds.task_types.clone(),
                repos: bounds.repos.iter().map(Pattern::to_string).collect(),
                models: bounds.models.iter().map(Pattern::to_string).collect(),
                networks: bounds.networks.iter().map(IpNet::to_string).collect(),
            },
            limits: LimitsView {
                requests_per_minute: limits.requests_per_minute,
                burst: limits.burst,
                concurrent_tasks: limits.concurrent_tasks,
            },
            created_at: created_at.to_string(),
            created_by: created_by.clone(),
            expires_at: expires_at.map(|time| time.to_string()),
            rotated_at: rotated_at.map(|time| time.to_string()),
            previous_until: previous.map(|previous| previous.until.to_string()),
            last_used_at: key.last_use.map(|last| last.at.to_string()),
            last_used_from: key.last_use.and_then(|last| last.address).map(|address| address.to_string()),
            revoked_at: revoked_at.map(|time| time.to_string()),
        }
    }
}

/// A key with its text, which is shown this once.
#[derive(Debug, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct IssuedKey {
    /// `orc_<environment>_<id>_<secret>`: send it as `Authorization: Bearer …`. It cannot be shown again: `null` in the
    /// answer to a repeat of the request.
    #[schema(required)]
    key: Option<String>,
    #[serde(flatten)]
    about: KeyView,
}

/// A page of keys.
#[derive(Debug, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct KeyList {
    /// Newest first.
    data: Vec<KeyView>,
    /// Pass it on as `cursor` for the next page; `null` when there is none.
    next_cursor: Option<String>,
}

impl From<KeyError> for Problem {
    fn from(error: KeyError) -> Self {
        match error {
            KeyError::Store(error) => error.into(),
            KeyError::Refused(Refusal::NoSuchKey) => Self::no_such_key(),
            KeyError::Refused(refused @ (Refusal::Exists | Refusal::Revoked | Refusal::Expired)) => {
                Self::new(Code::Conflict, format!("Nothing was done: {refused}."))
            }
            KeyError::Environment => {
                Self::invalid(vec![Field { pointer: "/environment".to_owned(), detail: error.to_string() }])
            }
            KeyError::NoRandomness | KeyError::Json(_) => Self::internal(error),
        }
    }
}

/// Whether this key is one of those that exist for the caller: of their team, and not for things outside their bounds.
fn sees(caller: &Caller, key: &KeyResource) -> bool {
    let KeyGrant { team, bounds, .. } = &key.key.grant;
    let of_team = team.as_deref().map_or_else(|| caller.is_admin(), |team| caller.sees(team));
    caller.who == Who::Key(key.id) || (of_team && bounds.things_within(&caller.bounds))
}

async fn visible(app: &App, caller: &Caller, id: &str) -> Result<KeyResource, Problem> {
    let id: KeyId = id.parse().map_err(|_| Problem::no_such_key())?;
    app.keys.catch_up(&*app.store).await?;
    app.keys.find(id).filter(|key| sees(caller, key)).ok_or_else(Problem::no_such_key)
}

/// What in a grant is more than the caller has. `server`: what whoever has no limits of their own is held to.
fn excess(caller: &Caller, grant: &NewKey, server: &KeyLimits) -> Vec<Field> {
    let mut excess = Vec::new();
    let mut more = |pointer: String, detail: String| excess.push(Field { pointer, detail });
    for scope in &grant.scopes {
        if !caller.may(*scope) {
            more("/scopes".to_owned(), format!("`{scope}` is not yours to hand on"));
        }
    }
    let own_team = match &grant.team {
        Some(team) => caller.sees(team),
        None => caller.is_admin(),
    };
    if !own_team {
        more("/team".to_owned(), "is not the team of your key; leave it out".to_owned());
    }
    if !grant.bounds.within(&caller.bounds) {
        more("/bounds".to_owned(), "reach further than those of your key; leave them out to have the same".to_owned());
    }
    // Only who answers for the whole server lets somebody do more on it than everybody.
    let within = if caller.is_admin() {
        grant.limits.within(&caller.limits)
    } else {
        grant.limits.or(server).within(&caller.limits.or(server))
    };
    if !within {
        let detail = "are higher than those of your key, or of this server; leave them out to have the same";
        more("/limits".to_owned(), detail.to_owned());
    }
    if caller.ends.is_some_and(|ends| grant.expires_at.is_none_or(|end| end > ends)) {
        more("/expiresAt".to_owned(), "is later than your own key expires; leave it out to have the same".to_owned());
    }
    excess
}

fn too_much(errors: Vec<Field>) -> Result<(), Problem> {
    if errors.is_empty() {
        return Ok(());
    }
    let detail = "Nobody can hand on more than their own key has; `errors` says what is more. Nothing was done.";
    Err(Problem { errors, ..Problem::new(Code::Forbidden, detail) })
}

fn answer(key: &SecretString, about: KeyView) -> IssuedKey {
    IssuedKey { key: Some(key.expose_secret().to_owned()), about }
}

/// The key as a repeat of the request that made its text sees it: without the text, which was shown once.
pub fn show(
    app: web::Data<App>,
    caller: Caller,
    subject: Subject,
) -> LocalBoxFuture<'static, Result<HttpResponse, Problem>> {
    Box::pin(async move {
        let about = KeyView::of(&visible(&app, &caller, &subject.id).await?, Timestamp::now());
        Ok(HttpResponse::Ok().json(IssuedKey { key: None, about }))
    })
}

/// Issues a key.
///
/// Its text is in this answer and cannot be shown again. A key can do no more than the one that issues it: scopes, team, bounds,
/// limits and expiry are the same or less, and what is left out is the same.
#[utoipa::path(post, path = "/v1/keys", tag = "keys", operation_id = "createKey",
    request_body(content = super::openapi::KeyRequest),
    responses(
        (status = 201, description = "Issued", body = IssuedKey, headers(("Location" = String, description = "The key"))),
        (status = 403, description = "More than the caller has", body = ProblemBody, content_type = "application/problem+json"),
        (status = 409, description = "The team has a thousand keys that work", body = ProblemBody, content_type = "application/problem+json"),
        (status = 422, description = "Fields that do not do", body = ProblemBody, content_type = "application/problem+json"),
    ))]
pub async fn create(
    app: web::Data<App>,
    caller: Caller,
    request: HttpRequest,
    payload: web::Payload,
) -> Result<HttpResponse, Problem> {
    let raw = body::json(&request, payload).await?;
    let (key, text) = issue_for(&app, &caller, &raw).await?;
    let location = format!("/v1/keys/{}", key.id);
    let body = answer(&text, KeyView::of(&key, Timestamp::now()));
    Ok(HttpResponse::Created().insert_header((header::LOCATION, location)).json(body))
}

/// Issues the key that a request describes; its text is in the answer alone.
pub async fn issue_for(app: &App, caller: &Caller, raw: &RawValue) -> Result<(KeyResource, SecretString), Problem> {
    let now = Timestamp::now();
    let mut faults = Faults::default();
    let new = Object::read(raw, "", &mut faults).map(|body| new_key(body, caller, now, &mut faults));
    faults.none()?;
    let Some(new) = new else { return Err(Problem::internal("a key that was read is not there")) };
    let _one_at_a_time = app.keys.changing().await;
    let caller = still(app, caller).await?;
    too_much(excess(&caller, &new, &app.limits.of_keys()))?;
    if app.keys.standing_of(new.team.as_deref(), now) >= MAX_STANDING {
        let detail = format!("There are {MAX_STANDING} keys already that work. Revoke those that nobody needs.");
        return Err(Problem::new(Code::Conflict, detail));
    }
    let actor = new.team.as_deref().map_or_else(|| caller.actor(), |team| caller.actor_for(team));
    let (id, text) = issue(&*app.store, new, &actor).await?;
    app.keys.catch_up(&*app.store).await?;
    let key = app.keys.find(id).ok_or_else(|| Problem::internal("the new key is not there"))?;
    Ok((key, text))
}

/// The keys that exist for a caller, before this one, newest first.
pub async fn page_for(app: &App, caller: &Caller, before: Option<KeyId>, limit: usize) -> Result<KeyPage, Problem> {
    app.keys.catch_up(&*app.store).await?;
    Ok(app.keys.page(|key| sees(caller, key), before, limit))
}

/// The caller's rights as they stand once everybody before them is done: two people at once do not act on what the other
/// has just taken back.
async fn still(app: &App, caller: &Caller) -> Result<Caller, Problem> {
    app.keys.catch_up(&*app.store).await?;
    let now = app.standing(caller).ok_or_else(Problem::unknown_key)?;
    let Caller { via, address, request, .. } = *caller;
    Ok(Caller { via, address, request, user_agent: caller.user_agent.clone(), ..now })
}

/// Lists keys, newest first.
#[utoipa::path(get, path = "/v1/keys", tag = "keys", operation_id = "listKeys",
    params(
        ("team" = Option<String>, Query),
        ("cursor" = Option<String>, Query, description = "`nextCursor` of the page before"),
        ("limit" = Option<u32>, Query, minimum = 1, maximum = 200),
    ),
    responses((status = 200, description = "A page of keys", body = KeyList)))]
pub async fn list(app: web::Data<App>, caller: Caller, request: HttpRequest) -> Result<HttpResponse, Problem> {
    let mut query = Parameters::of(&request)?;
    let team = query.text("team");
    let cursor = query.parsed::<KeyId>("cursor", "the nextCursor of the page before");
    let limit = query.limit(DEFAULT_PAGE, MAX_PAGE);
    query.finish()?;
    app.keys.catch_up(&*app.store).await?;
    let wanted = |key: &KeyResource| {
        sees(&caller, key) && team.as_ref().is_none_or(|team| key.key.grant.team.as_ref() == Some(team))
    };
    let page = app.keys.page(wanted, cursor, limit);
    let now = Timestamp::now();
    Ok(HttpResponse::Ok().json(KeyList {
        data: page.keys.iter().map(|key| KeyView::of(key, now)).collect(),
        next_cursor: page.next.map(|id| id.to_string()),
    }))
}

/// Reads a key.
#[utoipa::path(get, path = "/v1/keys/{id}", tag = "keys", operation_id = "getKey",
    params(("id" = String, Path)),
    responses((status = 200, description = "The key", body = KeyView),
        (status = 404, description = "No such key, or another team's", body = ProblemBody, content_type = "application/problem+json")))]
pub async fn get(
    app: web::Data<App>,
    caller: Caller,
    id: web::Path<String>,
    request: HttpRequest,
) -> Result<HttpResponse, Problem> {
    Parameters::of(&request)?.finish()?;
    Ok(HttpResponse::Ok().json(KeyView::of(&visible(&app, &caller, &id).await?, Timestamp::now())))
}

/// Gives a key a new text.
///
/// The new one is in this answer and cannot be shown again; the one before works on for `overlapSeconds`, an older one no longer.
#[utoipa::path(post, path = "/v1/keys/{id}/rotate", tag = "keys", operation_id = "rotateKey",
    params(("id" = String, Path)),
    request_body(content = Option<super::openapi::RotateRequest>),
    responses((status = 200, description = "Rotated", body = IssuedKey),
        (status = 403, description = "The key can do more than the caller's, or is the caller's own and has a newer text", body = ProblemBody, content_type = "application/problem+json"),
        (status = 404, description = "No such key, or another team's", body = ProblemBody, content_type = "application/problem+json"),
        (status = 409, description = "The key is revoked or expired", body = ProblemBody, content_type = "application/problem+json"),
        (status = 422, description = "Fields that do not do", body = ProblemBody, content_type = "application/problem+json")))]
pub async fn rotate(
    app: web::Data<App>,
    caller: Caller,
    id: web::Path<String>,
    request: HttpRequest,
    payload: web::Payload,
) -> Result<HttpResponse, Problem> {
    Parameters::of(&request)?.finish()?;
    let mut faults = Faults::default();
    let overlap = body::optional_object(&request, payload, &mut faults).await?.and_then(|mut body| {
        let overlap = body.whole("overlapSeconds", 0, MAX_OVERLAP.as_secs(), &mut faults);
        body.finish(&mut faults);
        overlap
    });
    faults.none()?;
    let overlap = overlap.map_or(OVERLAP, Duration::from_secs);
    let (key, text) = rotate_for(&app, &caller, &id, overlap).await?;
    Ok(HttpResponse::Ok().json(answer(&text, KeyView::of(&key, Timestamp::now()))))
}

/// Gives a key a new text, which is in the answer alone.
pub async fn rotate_for(
    app: &App,
    caller: &Caller,
    id: &str,
    overlap: Duration,
) -> Result<(KeyResource, SecretString), Problem> {
    let _one_at_a_time = app.keys.changing().await;
    let caller = still(app, caller).await?;
    let key = visible(app, &caller, id).await?;
    // Whoever gets the new text has what the key has.
    let KeyGrant { name, team, environment, scopes, bounds, expires_at, limits, .. } = key.key.grant.clone();
    let grant = NewKey { name, team, environment, scopes, bounds, expires_at, limits };
    if caller.who != Who::Key(key.id) {
        too_much(excess(&caller, &grant, &app.limits.of_keys()))?;
    } else if caller.generation != key.key.generation {
        // A text that is on its way out would make one that lasts, and end the one that its owner has now.
        return Err(Problem::replaced_text());
    }
    let actor = grant.team.as_deref().map_or_else(|| caller.actor(), |team| caller.actor_for(team));
    let text = rotate_key(&*app.store, key.id, &grant.environment, overlap, &actor).await?;
    app.keys.catch_up(&*app.store).await?;
    let key = app.keys.find(key.id).ok_or_else(Problem::no_such_key)?;
    Ok((key, text))
}

/// Revokes a key for good.
///
/// It is worth nothing from now on, and what is open with it ends within a second. A key revokes itself only with `self=true`, and
/// the last key that can do everything is not revoked.
#[utoipa::path(delete, path = "/v1/keys/{id}", tag = "keys", operation_id = "revokeKey",
    params(("id" = String, Path),
        ("self" = Option<bool>, Query, description = "`true`: also if it is the key that asks")),
    responses((status = 204, description = "Revoked, now or before"),
        (status = 400, description = "Parameters that do not do", body = ProblemBody, content_type = "application/problem+json"),
        (status = 403, description = "An operator's key", body = ProblemBody, content_type = "application/problem+json"),
        (status = 404, description = "No such key, or another team's", body = ProblemBody, content_type = "application/problem+json"),
        (status = 409, description = "The last admin key, or the caller's own without `self=true`", body = ProblemBody, content_type = "application/problem+json")))]
pub async fn revoke(
    app: web::Data<App>,
    caller: Caller,
    id: web::Path<String>,
    request: HttpRequest,
) -> Result<HttpResponse, Problem> {
    let mut query = Parameters::of(&request)?;
    let itself = query.parsed::<bool>("self", "true or false").unwrap_or(false);
    query.finish()?;
    revoke_for(&app, &caller, &id, itself).await?;
    Ok(HttpResponse::NoContent().finish())
}

/// Revokes a key; the caller's own only if they mean it.
pub async fn revoke_for(app: &App, caller: &Caller, id: &str, itself: bool) -> Result<(), Problem> {
    let _one_at_a_time = app.keys.changing().await;
    let key = visible(app, caller, id).await?;
    let caller = still(app, caller).await?;
    let conflict = |detail: &str| Err(Problem::new(Code::Conflict, detail));
    let admin = key.key.grant.scopes.contains(&Scope::Admin);
    if admin && !caller.is_admin() {
        return Err(Problem::missing_scope(Scope::Admin));
    }
    if caller.who == Who::Key(key.id) && !itself {
        return conflict("This is the key you are asking with. Add `?self=true` if you mean it.");
    }
    let now = Timestamp::now();
    // A key that ends by itself, or is good for a part only, does not stand in for one that is for always and everything.
    let lasts = key.key.grant.expires_at.is_none() && key.key.grant.bounds.is_empty();
    let remains =
        if lasts { app.keys.another_lasting_admin(key.id) } else { app.keys.another_admin(Some(key.id), now) };
    if admin && key.key.stands(now) && !remains {
        return conflict("This is the last key that can do everything, for always. Issue another one first.");
    }
    let team = key.key.grant.team.as_deref();
    let actor = team.map_or_else(|| caller.actor(), |team| caller.actor_for(team));
    revoke_key(&*app.store, key.id, &actor).await?;
    app.keys.catch_up(&*app.store).await?;
    Ok(())
}

// What is described and not built is in `openapi.rs`; this keeps its figures true.
const _: () = assert!(MAX_OVERLAP.as_secs() == 2_592_000);
