//! `/live/tasks`: the rows of an open task list that have changed since it was rendered.

use std::collections::HashMap;
use std::convert::Infallible;

use actix_web::{HttpRequest, HttpResponse, web};
use bytes::Bytes;
use futures_util::stream;
use orchestra_events::{Position, TaskId};
use serde::Deserialize;
use tokio::sync::OwnedSemaphorePermit;

use super::{Message, Swap, Watch, Woken};
use crate::App;
use crate::auth::Standing;
use crate::fragments::TaskRow;
use crate::pages::error::PageError;
use crate::pages::html::Html;
use crate::pages::panels;
use crate::pages::shell::Visitor;
use crate::pages::tasks::{self, Query, TaskList};
use crate::problem::Problem;

/// What the page knows already.
#[derive(Debug, Deserialize)]
pub struct Known {
    position: Option<u64>,
}

impl Known {
    /// Up to where the page was right when it was rendered.
    pub fn position(&self) -> Option<u64> {
        self.position
    }
}

/// `GET /live/tasks`.
pub async fn stream(
    app: web::Data<App>,
    visitor: Visitor,
    query: web::Query<Query>,
    known: web::Query<Known>,
    request: HttpRequest,
) -> Result<HttpResponse, PageError> {
    let permit =
        app.streams.clone().try_acquire_owned().map_err(|_| Problem::overloaded("Every live stream is taken."))?;
    let seen = super::left_off(&request, known.position).map(Position);
    let standing = Standing::of(&app, &visitor.caller);
    let mut live = ListStream {
        watch: Watch::new(app.read.bell()),
        app,
        visitor,
        query: query.into_inner(),
        shown: None,
        _permit: permit,
    };
    // What the page shows is known only where nothing has happened since it was rendered.
    if seen == Some(live.watch.position()) {
        live.shown = Some(live.rows().await?);
        if seen != Some(live.watch.position()) {
            live.shown = None;
        }
    }
    Ok(super::respond(
        standing,
        stream::unfold(live, |mut live| async move {
            let bytes = live.next().await?;
            Some((Ok::<Bytes, Infallible>(bytes), live))
        }),
    ))
}

type Rows = Vec<(TaskId, Html)>;

/// One reader of one list.
struct ListStream {
    app: web::Data<App>,
    visitor: Visitor,
    query: Query,
    watch: Watch,
    /// The rows as the page has them; `None`: not known.
    shown: Option<Rows>,
    _permit: OwnedSemaphorePermit,
}

impl ListStream {
    async fn rows(&self) -> Result<Rows, PageError> {
        let found = tasks::find(&self.app, &self.visitor, &self.query).await?;
        let fragments = &self.app.dashboard.fragments;
        Ok(found.tasks.iter().map(|task| (task.id, fragments.task_row(&TaskRow::of(task)))).collect())
    }

    async fn next(&mut self) -> Option<Bytes> {
        loop {
            if self.shown.is_some() {
                match self.watch.wait().await? {
                    Woken::ByTime => return self.visitor.still_here(&self.app).then(super::alive),
                    Woken::ByEvents => {}
                }
            }
            let position = self.watch.look();
            let rows = match self.rows().await {
                Ok(rows) => rows,
                Err(error) => {
                    tracing::warn!(%error, "a live list could not be read");
                    return None;
                }
            };
            let message = self.changes(&rows);
            self.shown = Some(rows);
            if let Some(message) = message {
                return Some(message.frame(Some(position.0)));
            }
        }
    }

    /// What makes the page show these rows: the changed ones, or all of them when they are others or in another order.
    fn changes(&self, rows: &Rows) -> Option<Message> {
        let mut message = Message::default();
        let same_tasks = self
            .shown
            .as_ref()
            .filter(|shown| shown.iter().map(|(id, _)| id).eq(rows.iter().map(|(id, _)| id)) && !rows.is_empty());
        match same_tasks {
            Some(shown) => {
                let before: HashMap<_, _> = shown.iter().map(|(id, html)| (id, html)).collect();
                let changed: Vec<_> = rows.iter().filter(|(id, html)| before.get(id) != Some(&html)).collect();
                if changed.is_empty() {
                    return None;
                }
                for (id, html) in changed {
                    message.put(&format!("row-{id}"), Swap::Morph, html);
                }
            }
            None if self.shown.as_ref().is_some_and(Vec::is_empty) && rows.is_empty() => return None,
            None => {
                let html: Vec<_> = rows.iter().map(|(_, html)| html.clone()).collect();
                message.put("list", Swap::Morph, &panels::render(&TaskList::new(&html, &self.query)));
            }
        }
        Some(message)
    }
}
