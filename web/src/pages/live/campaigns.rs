//! `/live/campaigns` and `/campaigns/{id}/live`: the panel of an open page, whenever it has changed since it was rendered.

use std::convert::Infallible;

use actix_web::{HttpRequest, HttpResponse, web};
use bytes::Bytes;
use futures_util::stream;
use orchestra_events::Position;
use tokio::sync::OwnedSemaphorePermit;

use super::list::Known;
use super::{Message, Swap, Watch, Woken};
use crate::App;
use crate::auth::Standing;
use crate::pages::campaigns::{self, Query};
use crate::pages::error::PageError;
use crate::pages::html::Html;
use crate::pages::shell::Visitor;
use crate::problem::Problem;

/// What the page shows.
enum Panel {
    List(Query),
    One(String),
}

/// One reader of one page.
struct PanelStream {
    app: web::Data<App>,
    visitor: Visitor,
    panel: Panel,
    watch: Watch,
    /// The panel as the page has it; `None`: not known.
    shown: Option<Html>,
    _permit: OwnedSemaphorePermit,
}

/// `GET /live/campaigns`.
pub async fn list(
    app: web::Data<App>,
    visitor: Visitor,
    query: web::Query<Query>,
    known: web::Query<Known>,
    request: HttpRequest,
) -> Result<HttpResponse, PageError> {
    let seen = super::left_off(&request, known.position()).map(Position);
    stream(app, visitor, Panel::List(query.into_inner()), seen).await
}

/// `GET /campaigns/{id}/live`.
pub async fn one(
    app: web::Data<App>,
    visitor: Visitor,
    id: web::Path<String>,
    known: web::Query<Known>,
    request: HttpRequest,
) -> Result<HttpResponse, PageError> {
    let seen = super::left_off(&request, known.position()).map(Position);
    stream(app, visitor, Panel::One(id.into_inner()), seen).await
}

async fn stream(
    app: web::Data<App>,
    visitor: Visitor,
    panel: Panel,
    seen: Option<Position>,
) -> Result<HttpResponse, PageError> {
    let permit =
        app.streams.clone().try_acquire_owned().map_err(|_| Problem::overloaded("Every live stream is taken."))?;
    let standing = Standing::of(&app, &visitor.caller);
    let watch = Watch::new(app.read.bell());
    let mut live = PanelStream { app, visitor, panel, watch, shown: None, _permit: permit };
    // Also where nothing is to be sent: who may not see it is told so now.
    let now = live.render().await?;
    // What the page shows is known only where nothing has happened since it was rendered.
    if seen == Some(live.watch.position()) {
        live.shown = Some(now);
    }
    Ok(super::respond(
        standing,
        stream::unfold(live, |mut live| async move {
            let bytes = live.next().await?;
            Some((Ok::<Bytes, Infallible>(bytes), live))
        }),
    ))
}

impl PanelStream {
    async fn render(&self) -> Result<Html, PageError> {
        match &self.panel {
            Panel::List(query) => campaigns::list_panel(&self.app, &self.visitor, query).await,
            Panel::One(id) => campaigns::campaign_panel(&self.app, &self.visitor, id).await,
        }
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
            let html = match self.render().await {
                Ok(html) => html,
                Err(error) => {
                    tracing::warn!(%error, "a live campaign could not be read");
                    return None;
                }
            };
            if self.shown.as_ref() == Some(&html) {
                continue;
            }
            let mut message = Message::default();
            let target = match &self.panel {
                Panel::List(_) => "list",
                Panel::One(_) => "campaign",
            };
            message.put(target, Swap::Morph, &html);
            self.shown = Some(html);
            return Some(message.frame(Some(position.0)));
        }
    }
}
