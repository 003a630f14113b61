//! `/tasks/{id}/live`: what a task's open page does not show yet, event by event, and the sentence being spoken.

use std::convert::Infallible;
use std::time::Duration;

use actix_web::{HttpRequest, HttpResponse, web};
use bytes::Bytes;
use futures_util::stream;
use orchestra_actors::Delta;
use orchestra_events::subscription::Subscription;
use orchestra_events::task::resource::RepoDiff;
use orchestra_events::task::{TaskEvent, TaskResource};
use orchestra_events::{Envelope, NanoUsd, Revision, StreamName};
use serde::Deserialize;
use tokio::sync::{OwnedSemaphorePermit, broadcast};
use tokio::time::Instant;

use super::{KEEP_ALIVE, Message, Swap};
use crate::App;
use crate::auth::Standing;
use crate::pages::diff;
use crate::pages::error::PageError;
use crate::pages::html::Html;
use crate::pages::machine::Machine;
use crate::pages::panels::{self, Changes, Head, Side};
use crate::pages::shell::Visitor;
use crate::pages::task::{Current, latest, patch, task_id};
use crate::pages::timeline::TimelineRow;
use crate::problem::Problem;

/// How long pieces of a sentence are gathered before they are sent together: more often than this nobody can read.
pub const GATHER: Duration = Duration::from_millis(120);
/// Most bytes of a sentence that are gathered.
pub const MAX_GATHERED: usize = 8 * 1024;
/// Most events in one message: a page that comes back after hours catches up in steps.
pub const MAX_ROWS: usize = 64;

/// What the page knows already.
#[derive(Debug, Deserialize)]
pub struct After {
    after: Option<u64>,
}

/// `GET /tasks/{id}/live`.
pub async fn stream(
    app: web::Data<App>,
    visitor: Visitor,
    id: web::Path<String>,
    after: web::Query<After>,
    request: HttpRequest,
) -> Result<HttpResponse, PageError> {
    let permit =
        app.streams.clone().try_acquire_owned().map_err(|_| Problem::overloaded("Every live stream is taken."))?;
    let (current, _) = latest(&app, &visitor, task_id(&id)?).await?;
    let after = super::left_off(&request, after.after);
    let standing = Standing::of(&app, &visitor.caller);
    let live = TaskStream::new(app, visitor, current, after.map(Revision), permit);
    Ok(super::respond(
        standing,
        stream::unfold(live, |mut live| async move {
            let bytes = live.next().await?;
            Some((Ok::<Bytes, Infallible>(bytes), live))
        }),
    ))
}

/// One reader of one task.
struct TaskStream {
    app: web::Data<App>,
    visitor: Visitor,
    current: Current,
    events: Subscription,
    /// Read, but not sent yet.
    waiting: std::collections::VecDeque<Envelope>,
    deltas: Option<broadcast::Receiver<Delta>>,
    shown: Panels,
    /// The last event of the task that the page has.
    sent: Option<Revision>,
    over: bool,
    /// The reader may have missed the beginning of the sentence that is being spoken.
    mid_sentence: bool,
    _permit: OwnedSemaphorePermit,
}

/// The panels as the page has them; what has not changed is not sent again, so that nothing closes under a reader's eyes.
#[derive(Default)]
struct Panels {
    head: Option<Html>,
    machine: Option<Html>,
    side: Option<Html>,
    /// The task's diffs, by hash: each is fetched once.
    diffs: Vec<RepoDiff>,
}

/// What woke a stream.
enum Woken {
    Events(Vec<Envelope>),
    Words(Delta),
    /// Pieces were lost, or no more will come.
    Silence(broadcast::error::RecvError),
    Time,
    Broken,
}

impl TaskStream {
    fn new(
        app: web::Data<App>,
        visitor: Visitor,
        current: Current,
        after: Option<Revision>,
        permit: OwnedSemaphorePermit,
    ) -> Self {
        let id = current.task.id;
        let deltas = (!current.task.status.is_final()).then(|| app.tasks.deltas(id));
        let mut shown = Panels::default();
        if after == Some(current.task.revision) {
            // The page was rendered from exactly this.
            shown.head = Some(panels::render(&Head::of(&current.task, &app.dashboard.fragments)));
            shown.machine = Some(panels::render(&Machine::of(&current.task)));
            shown.side = Some(panels::render(&Side::of(&current.task, &current.missing, &visitor)));
            shown.diffs.clone_from(&current.task.diffs);
        }
        Self {
            mid_sentence: current.task.reserved() > NanoUsd::ZERO,
            events: Subscription::stream(app.store.clone(), StreamName::task(id), after),
            app,
            visitor,
            current,
            waiting: std::collections::VecDeque::new(),
            deltas,
            shown,
            sent: after,
            over: false,
            _permit: permit,
        }
    }

    async fn next(&mut self) -> Option<Bytes> {
        if self.over {
            return None;
        }
        if !self.waiting.is_empty() {
            return Some(self.rows().await);
        }
        let current = self.current.task.revision;
        if self.current.task.status.is_final() && self.sent.is_some_and(|sent| sent >= current) {
            self.over = true;
            return Some(super::settled());
        }
        loop {
            match self.woken().await {
                Woken::Events(events) => {
                    self.waiting.extend(events);
                    return Some(self.rows().await);
                }
                Woken::Words(delta) => return Some(self.words(delta).await),
                Woken::Silence(broadcast::error::RecvError::Lagged(_)) => {}
                Woken::Silence(broadcast::error::RecvError::Closed) => self.deltas = None,
                Woken::Time if self.visitor.still_here(&self.app) => return Some(super::alive()),
                // Signed out, or the log cannot be read: the browser comes back and is told which.
                Woken::Time | Woken::Broken => return None,
            }
        }
    }

    async fn woken(&mut self) -> Woken {
        let words = async {
            match &mut self.deltas {
                Some(deltas) => deltas.recv().await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            biased;
            events = self.events.next_batch() => events.map_or(Woken::Broken, Woken::Events),
            words = words => words.map_or_else(Woken::Silence, Woken::Words),
            () = tokio::time::sleep(KEEP_ALIVE) => Woken::Time,
        }
    }

    /// Gathers what is said in the next moments and sends it as one piece.
    async fn words(&mut self, first: Delta) -> Bytes {
        let missed = std::mem::take(&mut self.mid_sentence);
        let mut text = if missed { format!("… {}", first.text) } else { first.text };
        let until = Instant::now() + GATHER;
        while let Some(deltas) = &mut self.deltas {
            if text.len() >= MAX_GATHERED {
                break;
            }
            match tokio::time::timeout_at(until, deltas.recv()).await {
                Ok(Ok(delta)) => text.push_str(&delta.text),
                Ok(Err(broadcast::error::RecvError::Lagged(_))) => text.push('…'),
                Ok(Err(broadcast::error::RecvError::Closed)) => self.deltas = None,
                Err(_) => break,
            }
        }
        let mut message = Message::default();
        message.put_text("speaking", Swap::Append, &text);
        message.frame(None)
    }

    /// The rows of the events that wait, and every panel that they changed.
    async fn rows(&mut self) -> Bytes {
        let mut message = Message::default();
        let id = self.current.task.id;
        let mut silent = false;
        for _ in 0..MAX_ROWS {
            let Some(envelope) = self.waiting.pop_front() else { break };
            self.sent = Some(envelope.revision);
            let event = TaskEvent::decode(&envelope).ok().flatten();
            if let Some(event) = &event {
                silent |= ends_the_sentence(event);
            }
            if envelope.revision > self.current.task.revision {
                self.fold(&envelope, event.as_ref());
            }
            if TimelineRow::shows(&envelope) {
                let row = self.app.dashboard.fragments.timeline_row(&TimelineRow::of(id, &envelope));
                message.put("timeline", Swap::Append, &row);
            }
        }
        if silent {
            self.mid_sentence = false;
            message.put_text("speaking", Swap::Fill, "");
            // What was said before the event is in the event.
            while let Some(Ok(_) | Err(broadcast::error::TryRecvError::Lagged(_))) =
                self.deltas.as_mut().map(broadcast::Receiver::try_recv)
            {}
        }
        self.panels(&mut message).await;
        message.frame(self.sent.map(|revision| revision.0))
    }

    fn fold(&mut self, envelope: &Envelope, event: Option<&TaskEvent>) {
        let task = &mut self.current.task;
        match event {
            Some(event) => {
                if let Some(folded) = TaskResource::fold(Some(task.clone()), envelope, event) {
                    *task = folded;
                }
                self.current.missing = panels::missing_after(std::mem::take(&mut self.current.missing), event);
            }
            None => (task.revision, task.position) = (envelope.revision, envelope.position),
        }
    }

    async fn panels(&mut self, message: &mut Message) {
        let task = &self.current.task;
        let head = panels::render(&Head::of(task, &self.app.dashboard.fragments));
        if self.shown.head.as_ref() != Some(&head) {
            message.put("head", Swap::Morph, &head);
            self.shown.head = Some(head);
        }
        let machine = panels::render(&Machine::of(task));
        if self.shown.machine.as_ref() != Some(&machine) {
            message.put("machine", Swap::Morph, &machine);
            self.shown.machine = Some(machine);
        }
        let side = panels::render(&Side::of(task, &self.current.missing, &self.visitor));
        if self.shown.side.as_ref() != Some(&side) {
            message.put("side", Swap::Morph, &side);
            self.shown.side = Some(side);
        }
        if self.shown.diffs != task.diffs {
            match patch(&self.app, task).await {
                Ok(patch) => {
                    let changes = panels::render(&Changes::of(task, &patch, diff::ON_TASK_PAGE, false));
                    message.put("changes", Swap::Morph, &changes);
                    self.shown.diffs.clone_from(&task.diffs);
                }
                // The next event tries again, and so does a reload.
                Err(error) => tracing::warn!(task = %task.id, %error, "a diff could not be read for a live page"),
            }
        }
    }
}

/// Whether what the model was saying is now said, or never will be.
fn ends_the_sentence(event: &TaskEvent) -> bool {
    matches!(
        event,
        TaskEvent::ModelCalled { .. }
            | TaskEvent::Message { .. }
            | TaskEvent::ModelCallFailed { .. }
            | TaskEvent::SandboxStopped { .. }
            | TaskEvent::Cancelled {}
            | TaskEvent::AttemptFailed { .. }
            | TaskEvent::Failed { .. }
            | TaskEvent::Succeeded {}
    )
}
