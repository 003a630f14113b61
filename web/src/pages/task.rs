//! `/tasks/{id}`: one task, live: where it stands, what it costs, what it says and does, and what it changed.

use actix_web::http::StatusCode;
use actix_web::http::header::{self, ContentDisposition, DispositionParam, DispositionType, HeaderValue};
use actix_web::{HttpResponse, web};
use askama::Template;
use orchestra_events::blob::Content;
use orchestra_events::task::conversation::Block;
use orchestra_events::task::event::CredentialKind;
use orchestra_events::task::{TaskEvent, TaskResource};
use orchestra_events::{Direction, Envelope, Revision, StreamName, TaskId};
use serde::Deserialize;

use super::diff;
use super::error::PageError;
use super::format;
use super::html::Html;
use super::machine::Machine;
use super::panels::{self, Changes, Head, Side};
use super::shell::{Shell, Visitor, page};
use super::timeline::{Link, TimelineRow};
use crate::App;
use crate::fragments::Fragments;
use crate::fragments::rows::title;
use crate::problem::{Code, Problem};

/// Rows of the timeline on one page.
pub const ROWS: usize = 200;
/// Most events that a page folds on top of what the read models know. They lag by milliseconds; what is missing beyond
/// this, the live stream brings.
pub const MAX_CATCH_UP: usize = 10_000;
/// Largest output that is sent as text, in bytes.
pub const MAX_OUTPUT: u64 = 16 * 1024 * 1024;

/// A task as its stream has it right now.
#[derive(Debug, Clone)]
pub struct Current {
    /// The task.
    pub task: TaskResource,
    /// The secrets that it waits for.
    pub missing: Vec<CredentialKind>,
}

impl Current {
    /// The task, if it exists and this visitor may see it: what the read models know, and whatever came since.
    pub async fn load(app: &App, visitor: &Visitor, id: TaskId) -> Result<Self, PageError> {
        let mut task = app.read.task(id).await?;
        let stream = StreamName::task(id);
        let mut read = 0;
        while read < MAX_CATCH_UP {
            let from = task.as_ref().map(|task| Revision(task.revision.0 + 1));
            let page = app.store.read_stream(&stream, from, Direction::Forwards, ROWS).await?;
            for envelope in &page {
                if let Ok(Some(event)) = TaskEvent::decode(envelope) {
                    task = TaskResource::fold(task, envelope, &event);
                } else if let Some(task) = &mut task {
                    (task.revision, task.position) = (envelope.revision, envelope.position);
                }
            }
            read += page.len();
            // Only an empty page says that there is no more: a page of large events ends early.
            if page.is_empty() || task.is_none() {
                break;
            }
        }
        let task = task.filter(|task| visitor.caller.sees_task(&task.spec)).ok_or_else(Problem::no_such_task)?;
        Ok(Self { task, missing: Vec::new() })
    }

    /// Takes in what the given events, which end where the task stands, say about missing secrets.
    fn hear(&mut self, events: &[Envelope]) {
        for event in events.iter().filter_map(|envelope| TaskEvent::decode(envelope).ok().flatten()) {
            self.missing = panels::missing_after(std::mem::take(&mut self.missing), &event);
        }
    }
}

/// Reads up to [`ROWS`] events that end at a revision, oldest first.
async fn events_until(app: &App, id: TaskId, last: Revision) -> Result<Vec<Envelope>, PageError> {
    let mut events = app.store.read_stream(&StreamName::task(id), Some(last), Direction::Backwards, ROWS).await?;
    events.reverse();
    Ok(events)
}

/// Reads a task and its latest events.
pub async fn latest(app: &App, visitor: &Visitor, id: TaskId) -> Result<(Current, Vec<Envelope>), PageError> {
    let mut current = Current::load(app, visitor, id).await?;
    let events = events_until(app, id, current.task.revision).await?;
    current.hear(&events);
    Ok((current, events))
}

/// What was, or would be, pushed.
pub async fn patch(app: &App, task: &TaskResource) -> Result<Vec<u8>, PageError> {
    let gone = task.diffs.is_empty() || task.erased_at.is_some();
    if gone { Ok(Vec::new()) } else { Ok(app.tasks.diff(task.id).await?) }
}

/// The task's page.
#[derive(Debug, Template)]
#[template(path = "task.html")]
pub struct TaskPage {
    shell: Shell,
    title: String,
    notice: Option<&'static str>,
    live: Option<String>,
    head: Html,
    machine: Html,
    changes: Html,
    side: Html,
    rows: Vec<Html>,
    older: Option<Link>,
    newer: Option<Link>,
}

impl TaskPage {
    fn new(
        visitor: &Visitor,
        fragments: &Fragments,
        current: &Current,
        patch: &[u8],
        events: &[Envelope],
        view: &View,
    ) -> Self {
        let task = &current.task;
        let first = events.first().map_or(0, |event| event.revision.0);
        let path = format!("/tasks/{}", task.id);
        let past = view.before.is_some();
        Self {
            shell: Shell::of(visitor),
            title: title(&task.spec.task),
            notice: view.notice.map(Notice::sentence),
            live: (!past && !task.status.is_final()).then(|| format!("{path}/live?after={}", task.revision.0)),
            head: panels::render(&Head::of(task, fragments)),
            machine: panels::render(&Machine::of(task)),
            changes: panels::render(&Changes::of(task, patch, diff::ON_TASK_PAGE, false)),
            side: panels::render(&Side::of(task, &current.missing, visitor)),
            rows: events
                .iter()
                .filter(|event| TimelineRow::shows(event))
                .map(|event| fragments.timeline_row(&TimelineRow::of(task.id, event)))
                .collect(),
            older: (first > 0).then(|| Link {
                href: format!("{path}?before={first}#timeline-title"),
                text: format!("{} earlier", format::count(first, "event", "events")),
            }),
            newer: past.then(|| Link { href: path.clone(), text: "Back to the latest events".to_owned() }),
        }
    }

    /// Pages of every status.
    pub fn samples() -> Vec<Self> {
        let fragments = Fragments::embedded();
        let events = super::sample::envelopes();
        super::sample::tasks()
            .into_iter()
            .flat_map(|task| {
                let current = Current { task, missing: vec![CredentialKind::Git, CredentialKind::Model] };
                [None, Some(5)].map(|before| {
                    let view = View { before, notice: before.is_none().then_some(Notice::Sent) };
                    let patch = super::sample::DIFF.as_bytes();
                    Self::new(&Visitor::sample(), &fragments, &current, patch, &events[2..], &view)
                })
            })
            .collect()
    }
}

/// What was just done, in the address so that a reload shows it without doing it again.
#[derive(Debug, Clone, Copy, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Notice {
    /// A cancel was asked for.
    Cancelling,
    /// A new attempt was asked for.
    Retrying,
    /// A message was sent.
    Sent,
    /// Secrets were supplied.
    Supplied,
    /// The words were erased.
    Erased,
}

impl Notice {
    const fn sentence(self) -> &'static str {
        match self {
            Self::Cancelling => "Asked the task to stop.",
            Self::Retrying => "A new attempt is queued.",
            Self::Sent => "The agent reads your message before its next step.",
            Self::Supplied => "Credentials taken; the task goes on.",
            Self::Erased => "What was said and written is erased.",
        }
    }
}

/// Which part of the timeline, and what to say on top.
#[derive(Debug, Deserialize)]
pub struct View {
    before: Option<u64>,
    notice: Option<Notice>,
}

/// Reads the id in a path; what is no id names no task.
pub fn task_id(text: &str) -> Result<TaskId, PageError> {
    text.parse().map_err(|_| Problem::no_such_task().into())
}

/// `GET /tasks/{id}`.
pub async fn show(
    app: web::Data<App>,
    visitor: Visitor,
    id: web::Path<String>,
    view: web::Query<View>,
) -> Result<HttpResponse, PageError> {
    let id = task_id(&id)?;
    let (current, newest) = latest(&app, &visitor, id).await?;
    let events = match view.before {
        None => newest,
        Some(0) => Vec::new(),
        Some(before) => events_until(&app, id, Revision((before - 1).min(current.task.revision.0))).await?,
    };
    let patch = patch(&app, &current.task).await?;
    let shown = TaskPage::new(&visitor, &app.dashboard.fragments, &current, &patch, &events, &view);
    Ok(page(StatusCode::OK, &shown))
}

/// The changes alone, nearly all of them.
#[derive(Debug, Template)]
#[template(path = "diff.html")]
pub struct DiffPage {
    shell: Shell,
    id: String,
    title: String,
    changes: Html,
    empty: bool,
}

impl DiffPage {
    fn new(visitor: &Visitor, task: &TaskResource, patch: &[u8]) -> Self {
        let changes = Changes::of(task, patch, diff::ON_OWN_PAGE, true);
        Self {
            shell: Shell::of(visitor),
            id: task.id.to_string(),
            title: title(&task.spec.task),
            empty: changes.is_empty(),
            changes: panels::render(&changes),
        }
    }

    /// With and without changes.
    pub fn samples() -> Vec<Self> {
        let task = super::sample::tasks().remove(0);
        let patches: [&[u8]; 2] = [super::sample::DIFF.as_bytes(), b""];
        patches.map(|patch| Self::new(&Visitor::sample(), &task, patch)).into()
    }
}

/// `GET /tasks/{id}/diff`.
pub async fn show_diff(
    app: web::Data<App>,
    visitor: Visitor,
    id: web::Path<String>,
) -> Result<HttpResponse, PageError> {
    let current = Current::load(&app, &visitor, task_id(&id)?).await?;
    let patch = patch(&app, &current.task).await?;
    Ok(page(StatusCode::OK, &DiffPage::new(&visitor, &current.task, &patch)))
}

/// `GET /tasks/{id}/diff.patch`: all of it, for `git apply`.
pub async fn send_patch(
    app: web::Data<App>,
    visitor: Visitor,
    id: web::Path<String>,
) -> Result<HttpResponse, PageError> {
    let current = Current::load(&app, &visitor, task_id(&id)?).await?;
    let patch = patch(&app, &current.task).await?;
    let mut response = as_text(patch);
    let disposition = ContentDisposition {
        disposition: DispositionType::Attachment,
        parameters: vec![DispositionParam::Filename(format!("{}.patch", current.task.id))],
    };
    if let Ok(value) = HeaderValue::from_str(&disposition.to_string()) {
        response.headers_mut().insert(header::CONTENT_DISPOSITION, value);
    }
    Ok(response)
}

/// Bytes that a sandbox wrote, as text that no browser takes for anything else.
fn as_text(bytes: Vec<u8>) -> HttpResponse {
    HttpResponse::Ok()
        .insert_header((header::CONTENT_TYPE, "text/plain; charset=utf-8"))
        .insert_header((header::CONTENT_SECURITY_POLICY, "default-src 'none'; sandbox"))
        .insert_header((header::CACHE_CONTROL, "no-store"))
        .body(bytes)
}

/// `GET /tasks/{id}/output/{revision}`: the whole text of one event.
pub async fn send_output(
    app: web::Data<App>,
    visitor: Visitor,
    path: web::Path<(String, u64)>,
) -> Result<HttpResponse, PageError> {
    let (id, revision) = path.into_inner();
    let current = Current::load(&app, &visitor, task_id(&id)?).await?;
    let stream = StreamName::task(current.task.id);
    let found = app.store.read_stream(&stream, Some(Revision(revision)), Direction::Forwards, 1).await?;
    let event = found.first().filter(|envelope| envelope.revision.0 == revision).and_then(|envelope| {
        // What cannot be read has no text; the timeline says so.
        TaskEvent::decode(envelope).ok().flatten()
    });
    let contents: Vec<Content> = match event {
        Some(TaskEvent::ToolFinished { output, .. } | TaskEvent::SetupFinished { output: Some(output), .. }) => {
            vec![output]
        }
        Some(TaskEvent::Message { content, .. }) => content
            .into_iter()
            .filter_map(|block| match block {
                Block::Text { text } | Block::Thinking { text, .. } => Some(text),
                Block::ToolUse { .. } => None,
            })
            .collect(),
        _ => return Err(PageError::not_found().back_to(format!("/tasks/{id}"), "Back to the task")),
    };
    let mut whole = Vec::new();
    for content in contents {
        if !whole.is_empty() {
            whole.extend_from_slice(b"\n\n");
        }
        match content {
            Content::Inline(text) => whole.extend_from_slice(text.as_bytes()),
            Content::Blob(blob) if blob.bytes > MAX_OUTPUT => {
                let detail = format!(
                    "This output has {}; pages show up to {}.",
                    format::bytes(blob.bytes),
                    format::bytes(MAX_OUTPUT)
                );
                return Err(Problem::new(Code::BodyTooLarge, detail).into());
            }
            Content::Blob(blob) => {
                let blobs = app.dashboard.blobs.as_ref().ok_or_else(PageError::not_found)?;
                whole.extend(blobs.get(current.task.id, &blob).await.map_err(Problem::internal)?);
            }
        }
    }
    Ok(as_text(whole))
}
