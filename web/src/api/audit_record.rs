//! The record itself: the key that signs it, its checkpoints, and the whole of it to verify elsewhere.

use actix_web::http::header;
use actix_web::web::Bytes;
use actix_web::{HttpRequest, HttpResponse, web};
use futures_util::future::LocalBoxFuture;
use futures_util::stream;
use orchestra_actors::notary::Signed;
use orchestra_actors::{AuditService, NotaryError};
use orchestra_events::audit::Checkpoint;
use orchestra_events::audit::export::{Header, MAX_FURTHER, Owed, Trailer, write_event};
use orchestra_events::audit::key_id;
use orchestra_events::store::chain::{Digest, Linked};
use orchestra_events::{Position, Revision};
use serde::Serialize;
use std::sync::Arc;
use utoipa::ToSchema;

use super::query::Parameters;
use super::repeat::Subject;
use crate::App;
use crate::auth::Caller;
use crate::problem::{Problem, ProblemBody};

/// Checkpoints on a page when the caller does not say.
pub const DEFAULT_PAGE: usize = 20;
/// Most checkpoints on a page.
pub const MAX_PAGE: usize = 200;
/// Events that an export reads at a time.
const EXPORT_PAGE: usize = 256;

/// The key that checkpoints are verified with.
#[derive(Debug, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct AuditKey {
    /// Always `Ed25519`.
    algorithm: &'static str,
    /// The first 16 bytes of the key's SHA-256: what the server prints at its start.
    key_id: String,
    /// The key, 32 bytes.
    public_key: String,
}

/// A signed statement of how far the log had come. Bytes are in lower-case hexadecimal.
#[derive(Debug, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct CheckpointView {
    /// The link of the log's first event.
    log_id: String,
    /// The last event that the statement is about.
    position: u64,
    /// That event's link.
    global_link: String,
    #[schema(format = "date-time")]
    time: String,
    key_id: String,
    public_key: String,
    /// Ed25519 over the statement's bytes; docs/security.md has their layout.
    signature: String,
}

/// A page of checkpoints.
#[derive(Debug, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct CheckpointList {
    /// Newest first.
    data: Vec<CheckpointView>,
    /// Pass it on as `cursor` for the next page; null when there is none.
    next_cursor: Option<String>,
}

impl From<Checkpoint> for CheckpointView {
    fn from(checkpoint: Checkpoint) -> Self {
        Self {
            log_id: checkpoint.log_id.to_string(),
            position: checkpoint.position,
            global_link: checkpoint.global_link.to_string(),
            time: checkpoint.time.to_string(),
            key_id: checkpoint.key_id.to_string(),
            public_key: checkpoint.public_key.to_string(),
            signature: checkpoint.signature.to_string(),
        }
    }
}

fn problem(error: NotaryError) -> Problem {
    match error {
        NotaryError::Store(error) => error.into(),
        NotaryError::Empty | NotaryError::Rewritten { .. } | NotaryError::Damaged(_) => Problem::internal(error),
    }
}

fn service(app: &App) -> Result<&Arc<dyn AuditService>, Problem> {
    app.audit.as_ref().ok_or_else(|| Problem::internal("nobody signs the log"))
}

/// Reads the public key that checkpoints are verified with.
#[utoipa::path(get, path = "/v1/audit/key", tag = "audit", operation_id = "getAuditKey",
    responses((status = 200, description = "The key", body = AuditKey)))]
pub async fn key(app: web::Data<App>, request: HttpRequest) -> Result<HttpResponse, Problem> {
    Parameters::of(&request)?.finish()?;
    let public = service(&app)?.public_key();
    let key_id = key_id(&public).to_string();
    Ok(HttpResponse::Ok().json(AuditKey { algorithm: "Ed25519", key_id, public_key: public.to_string() }))
}

/// Lists the checkpoints that this server has signed, newest first.
#[utoipa::path(get, path = "/v1/audit/checkpoints", tag = "audit", operation_id = "listCheckpoints",
    params(("cursor" = Option<u64>, Query, description = "`nextCursor` of the page before"),
        ("limit" = Option<u32>, Query, minimum = 1, maximum = 200)),
    responses((status = 200, description = "A page of checkpoints", body = CheckpointList),
        (status = 400, description = "Parameters that do not do", body = ProblemBody, content_type = "application/problem+json")))]
pub async fn checkpoints(app: web::Data<App>, request: HttpRequest) -> Result<HttpResponse, Problem> {
    let mut query = Parameters::of(&request)?;
    // As the document has it: a whole number of 64 bits with a sign.
    let before = query.parsed::<i64>("cursor", "the nextCursor of the page before");
    let before = before.and_then(|revision| match u64::try_from(revision) {
        Ok(revision) => Some(Revision(revision)),
        Err(_) => {
            query.fault("cursor", "expected the nextCursor of the page before");
            None
        }
    });
    let limit = query.limit(DEFAULT_PAGE, MAX_PAGE);
    query.finish()?;
    let signed = service(&app)?.signed(before, limit).await.map_err(problem)?;
    let last = signed.last().map(|signed| signed.revision).filter(|revision| revision.0 > 0);
    let next_cursor = last.filter(|_| signed.len() == limit).map(|revision| revision.0.to_string());
    let data = signed.into_iter().map(|Signed { checkpoint, .. }| checkpoint.into()).collect();
    Ok(HttpResponse::Ok().json(CheckpointList { data, next_cursor }))
}

/// The newest checkpoint, which a repeat of the request to sign one is shown: it covers what the first one covered.
pub fn show(app: web::Data<App>, _: Caller, _: Subject) -> LocalBoxFuture<'static, Result<HttpResponse, Problem>> {
    Box::pin(async move {
        let newest = service(&app)?.signed(None, 1).await.map_err(problem)?.into_iter().next();
        let newest = newest.ok_or_else(|| Problem::internal("a checkpoint that was signed is not there"))?;
        Ok(HttpResponse::Ok().json(CheckpointView::from(newest.checkpoint)))
    })
}

/// Signs the log as it is now.
///
/// The checkpoint is an event too. Keep the answer where whoever can write the server's database cannot.
#[utoipa::path(post, path = "/v1/audit/checkpoints", tag = "audit", operation_id = "createCheckpoint",
    responses((status = 201, description = "The checkpoint", body = CheckpointView)))]
pub async fn sign(app: web::Data<App>, caller: Caller, request: HttpRequest) -> Result<HttpResponse, Problem> {
    Parameters::of(&request)?.finish()?;
    let checkpoint = service(&app)?.sign(caller.actor()).await.map_err(problem)?;
    Ok(HttpResponse::Created().json(CheckpointView::from(checkpoint)))
}

struct Export {
    app: web::Data<App>,
    audit: Arc<dyn AuditService>,
    caller: Caller,
    at: Position,
    head: Position,
    link: Digest,
    content: bool,
    ended: bool,
    owed: Owed,
    /// How often it went further than the log's end was.
    further: usize,
    _permit: tokio::sync::OwnedSemaphorePermit,
}

impl Export {
    async fn piece(&mut self) -> Result<Option<Bytes>, Problem> {
        if self.ended {
            return Ok(None);
        }
        // Whoever was revoked meanwhile reads no further, and is not told that this was all.
        if self.app.standing(&self.caller).is_none() {
            return Err(Problem::unknown_key());
        }
        // What was erased meanwhile has its erasure behind the end that the log had: without it, the words would seem stolen.
        if self.at >= self.head && self.content && self.owed.is_any() && self.further < MAX_FURTHER {
            self.further += 1;
            self.head = self.app.store.head().await?;
        }
        if self.at >= self.head {
            self.ended = true;
            let checkpoint = self.audit.end(self.at, self.link).await.map_err(problem)?;
            return Ok(Some(Trailer { checkpoint }.line().into()));
        }
        let wanted = usize::try_from(self.head.0 - self.at.0).unwrap_or(EXPORT_PAGE).min(EXPORT_PAGE);
        let mut events = self.audit.links(self.at, wanted).await?;
        let Some(last) = events.last() else {
            return Err(Problem::internal(format!("no event follows position {}", self.at.0)));
        };
        (self.at, self.link) = (last.event.position, last.links.global);
        let mut lines = Vec::new();
        for Linked { event, seal, private, .. } in &events {
            self.owed.met(&event.stream, &event.kind, seal.is_some() && private.is_none());
        }
        if !self.content {
            events.iter_mut().for_each(|linked| linked.private = None);
        }
        events.iter().for_each(|linked| write_event(&mut lines, linked));
        Ok(Some(lines.into()))
    }
}

/// Exports the whole log, to be verified elsewhere with `orchestra audit verify`.
///
/// One line of JSON per event, with a header and a signed end; every team's events, up to where the log is when this is
/// asked, and on to the erasure of what was erased meanwhile.
#[utoipa::path(get, path = "/v1/audit/export", tag = "audit", operation_id = "exportAudit",
    params(("content" = Option<bool>, Query, description = "`false` leaves out the words that may be erased")),
    responses((status = 200, description = "The log", content((String = "application/x-ndjson")))))]
pub async fn export(app: web::Data<App>, caller: Caller, request: HttpRequest) -> Result<HttpResponse, Problem> {
    let mut query = Parameters::of(&request)?;
    let content = query.parsed::<bool>("content", "true or false").unwrap_or(true);
    query.finish()?;
    let audit = Arc::clone(service(&app)?);
    let permit = app.stream_permit()?;
    let head = app.store.head().await?;
    let log = audit.log_id().await.map_err(problem)?;
    let header = Bytes::from(Header::new(log, audit.public_key()).line());
    let at = Position::START;
    let export = Export {
        app,
        audit,
        caller,
        at,
        head,
        link: Digest::GENESIS,
        content,
        ended: false,
        owed: Owed::default(),
        further: 0,
        _permit: permit,
    };
    let lines = stream::unfold(export, |mut export| async move {
        let piece = match export.piece().await {
            Ok(piece) => Ok(piece?),
            // The connection breaks off, so that nobody takes a part for the whole.
            Err(problem) => {
                tracing::warn!(%problem, "an export of the log breaks off");
                export.ended = true;
                Err(actix_web::Error::from(problem))
            }
        };
        Some((piece, export))
    });
    use futures_util::StreamExt as _;
    let lines = stream::once(async move { Ok(header) }).chain(lines);
    Ok(HttpResponse::Ok()
        .content_type("application/x-ndjson")
        .insert_header((header::CACHE_CONTROL, "no-store"))
        .insert_header((header::CONTENT_DISPOSITION, "attachment; filename=\"orchestra-audit.ndjson\""))
        .streaming(lines))
}
