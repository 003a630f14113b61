//! Pages that keep up: streams of fragments that the browser swaps into what it shows.
//!
//! A message without a name carries partials, each with the place it goes to; its id is the revision or position up to
//! which the page is then right, so that a connection that breaks resumes with no gap and no repeat.

pub mod campaigns;
pub mod list;
pub mod task;

use std::convert::Infallible;
use std::time::Duration;

use actix_web::HttpResponse;
use actix_web::http::header;
use bytes::Bytes;
use futures_util::{Stream, StreamExt as _, stream};
use orchestra_events::Position;
use tokio::sync::watch;
use tokio::time::Instant;

use super::html::Html;
use crate::auth::Standing;

/// The pause after which a silent stream says that it is alive, and looks whether its reader still may read.
pub const KEEP_ALIVE: Duration = Duration::from_secs(15);

/// How a fragment gets into the page.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Swap {
    /// Behind what the target holds.
    Append,
    /// In place of the target, keeping what is the same.
    Morph,
    /// In place of what the target holds.
    Fill,
}

impl Swap {
    const fn style(self) -> &'static str {
        match self {
            Self::Append => "beforeend",
            Self::Morph => "outerMorph",
            Self::Fill => "innerHTML",
        }
    }
}

/// The shortest pause between two looks at what a page shows. A busy server has a hundred events a second; a reader has two
/// eyes.
pub const PACE: Duration = Duration::from_millis(500);

/// When a page that shows several things is looked at again.
pub struct Watch {
    bell: watch::Receiver<Position>,
    looked: Instant,
    /// When the visitor was last found to be still here, and told so.
    last_sign: Instant,
}

/// What ended a wait.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Woken {
    /// Something has happened, perhaps to what the page shows.
    ByEvents,
    /// It is time to look whether the reader may still read, and to say that the stream is alive.
    ByTime,
}

impl Watch {
    /// A watch that has not looked yet.
    pub fn new(bell: watch::Receiver<Position>) -> Self {
        Self { bell, looked: Instant::now(), last_sign: Instant::now() }
    }

    /// How far the read models are.
    pub fn position(&self) -> Position {
        *self.bell.borrow()
    }

    /// Waits until there is something to look at. `None`: the server is ending.
    pub async fn wait(&mut self) -> Option<Woken> {
        tokio::select! {
            // First: however often it rings for what this page does not show.
            biased;
            () = tokio::time::sleep_until(self.last_sign + KEEP_ALIVE) => {
                self.last_sign = Instant::now();
                return Some(Woken::ByTime);
            }
            rung = self.bell.changed() => rung.ok()?,
        }
        tokio::time::sleep_until(self.looked + PACE).await;
        Some(Woken::ByEvents)
    }

    /// Begins a look. Heard before it: what happens in between rings again.
    pub fn look(&mut self) -> Position {
        self.looked = Instant::now();
        *self.bell.borrow_and_update()
    }
}

/// A message under way to the browser.
#[derive(Debug, Default)]
pub struct Message {
    html: String,
}

impl Message {
    /// Adds a fragment for the element of this id.
    pub fn put(&mut self, target: &str, swap: Swap, html: &Html) {
        self.put_markup(target, swap, html.as_str());
    }

    /// Adds words for the element of this id.
    pub fn put_text(&mut self, target: &str, swap: Swap, text: &str) {
        self.put_markup(target, swap, &escape(text));
    }

    fn put_markup(&mut self, target: &str, swap: Swap, markup: &str) {
        let style = swap.style();
        // Ids are our own: digits, lower-case letters, '_' and '-'.
        self.html.push_str(&format!("<hx-partial hx-target=\"#{target}\" hx-swap=\"{style}\">{markup}</hx-partial>"));
    }

    /// The message in the words of the protocol. Without an id it leaves the reader's place where it is.
    pub fn frame(&self, id: Option<u64>) -> Bytes {
        let mut frame = String::with_capacity(self.html.len() + 64);
        if let Some(id) = id {
            frame.push_str(&format!("id: {id}\n"));
        }
        // A carriage return would end the line too.
        for line in self.html.replace("\r\n", "\n").replace('\r', "\n").split('\n') {
            frame.push_str("data: ");
            frame.push_str(line);
            frame.push('\n');
        }
        frame.push('\n');
        frame.into()
    }
}

/// The message that ends a stream for good.
pub fn settled() -> Bytes {
    Bytes::from_static(b"event: settled\ndata: settled\n\n")
}

/// A sign of life.
pub fn alive() -> Bytes {
    Bytes::from_static(b": alive\n\n")
}

fn escape(text: &str) -> String {
    let mut escaped = String::with_capacity(text.len());
    for letter in text.chars() {
        match letter {
            '&' => escaped.push_str("&amp;"),
            '<' => escaped.push_str("&lt;"),
            '>' => escaped.push_str("&gt;"),
            '"' => escaped.push_str("&quot;"),
            '\'' => escaped.push_str("&#39;"),
            '\0' => escaped.push('\u{fffd}'),
            letter => escaped.push(letter),
        }
    }
    escaped
}

/// Answers with a stream that no proxy holds back. It begins with a sign of life: the headers travel with the first
/// bytes, and a page whose stream has nothing to say yet is to know that it is connected. It ends with its reader's rights.
pub fn respond(
    mut standing: Standing,
    stream: impl Stream<Item = Result<Bytes, Infallible>> + 'static,
) -> HttpResponse {
    let connected = stream::once(std::future::ready(Ok(alive())));
    let ended = Box::pin(async move { standing.ended().await });
    HttpResponse::Ok()
        .insert_header((header::CONTENT_TYPE, "text/event-stream; charset=utf-8"))
        .insert_header((header::CACHE_CONTROL, "no-store, no-transform"))
        .insert_header(("x-accel-buffering", "no"))
        .streaming(connected.chain(stream).take_until(ended))
}

/// Where a reader left off: what it says itself when it comes back, else what its page said.
pub fn left_off(request: &actix_web::HttpRequest, after: Option<u64>) -> Option<u64> {
    let resumed = request.headers().get("last-event-id").and_then(|id| id.to_str().ok());
    resumed.and_then(|id| id.trim().parse().ok()).or(after)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_stay_words_and_lines_stay_lines() {
        let mut message = Message::default();
        message.put_text("speaking", Swap::Append, "a\r\nb\rc</hx-partial><script>\n\nid: 7");
        let frame = String::from_utf8(message.frame(Some(3)).to_vec()).expect("text");
        let lines: Vec<_> = frame.lines().collect();
        assert_eq!(lines[0], "id: 3");
        assert!(lines[1..lines.len() - 1].iter().all(|line| line.starts_with("data: ")), "{frame}");
        assert!(!frame.contains("<script>") && frame.matches("</hx-partial>").count() == 1, "{frame}");
    }
}
