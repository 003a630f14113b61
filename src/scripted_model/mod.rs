//! A model provider that follows a script: for demonstrations and for tests of the whole house, without a key or a cent.
//!
//! It speaks Anthropic's Messages, OpenAI's Chat Completions and OpenAI's Responses, streamed and not, and fails on demand
//! in every way a provider can. The turn to play follows from the request alone, so it may be restarted at any moment.
//! `docs/scripted-model.md` describes the script.

mod anthropic;
mod fault;
mod openai;
mod record;
mod responses;
mod script;
#[cfg(test)]
mod tests;

use std::convert::Infallible;
use std::io::Write as _;
use std::net::{SocketAddr, ToSocketAddrs};
use std::path::{Path, PathBuf};
use std::time::Duration;

use actix_web::body::{BodyStream, MessageBody};
use actix_web::http::StatusCode;
use actix_web::web::{Bytes, Data, PayloadConfig};
use actix_web::{App, HttpRequest, HttpResponse, HttpServer, web};
use anyhow::Context as _;
use futures_util::{StreamExt as _, stream};
use serde_json::Value;

pub use record::RequestRecord;
pub use script::Script;

use record::Records;
use script::{Asked, Played};

/// The longest request that is read.
const MAX_BODY: usize = 64 * 1024 * 1024;

/// A request that is left hanging is let go after this, so that a forgotten client holds nothing for ever.
const MAX_HANG: Duration = Duration::from_secs(15 * 60);

/// The wire format of a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Dialect {
    /// `/v1/messages`.
    Anthropic,
    /// `/v1/chat/completions`.
    OpenaiChat,
    /// `/v1/responses`.
    OpenaiResponses,
}

impl Dialect {
    fn stream(self, played: &Played, asked: &Asked) -> Vec<String> {
        match self {
            Self::Anthropic => anthropic::stream(played, asked),
            Self::OpenaiChat => openai::stream(played, asked),
            Self::OpenaiResponses => responses::stream(played, asked),
        }
    }

    fn json(self, played: &Played, asked: &Asked) -> Value {
        match self {
            Self::Anthropic => anthropic::json(played, asked),
            Self::OpenaiChat => openai::json(played, asked),
            Self::OpenaiResponses => responses::json(played, asked),
        }
    }

    fn error(self, status: u16, message: &str) -> Value {
        match self {
            Self::Anthropic => anthropic::error(status, message),
            Self::OpenaiChat | Self::OpenaiResponses => openai::error(status, message),
        }
    }
}

/// Reads a script file.
pub fn read_script(path: &Path) -> anyhow::Result<Script> {
    let text = std::fs::read_to_string(path).with_context(|| format!("cannot read the script {}", path.display()))?;
    serde_json::from_str(&text)
        .with_context(|| format!("{} is not a script; see docs/scripted-model.md", path.display()))
}

/// Starts the server and returns where it listens. It stops when the returned handle's future is dropped or stopped.
///
/// Only loopback addresses are taken: it answers anybody who asks.
pub fn start(
    listen: &str,
    script: Script,
    log: Option<PathBuf>,
) -> anyhow::Result<(SocketAddr, actix_web::dev::Server)> {
    let addresses: Vec<SocketAddr> = listen
        .to_socket_addrs()
        .with_context(|| format!("{listen:?} is not an address such as 127.0.0.1:0"))?
        .collect();
    if addresses.is_empty() || !addresses.iter().all(|address| address.ip().is_loopback()) {
        anyhow::bail!("the scripted model listens on this machine only; {listen:?} is not a loopback address");
    }
    let state = Data::new(State { script, records: Records::new(log)? });
    let server = HttpServer::new(move || {
        App::new()
            .app_data(Data::clone(&state))
            .app_data(PayloadConfig::new(MAX_BODY))
            .route("/v1/messages", web::post().to(messages))
            .route("/v1/messages/count_tokens", web::post().to(count_tokens))
            .route("/v1/chat/completions", web::post().to(chat))
            .route("/v1/responses", web::post().to(respond))
            .route("/requests", web::get().to(requests))
            .route("/totals", web::get().to(totals))
    })
    .workers(2)
    .shutdown_timeout(1)
    .bind(&addresses[..])
    .with_context(|| format!("cannot listen on {listen}"))?;
    let address = server.addrs().first().copied().context("the server has no address")?;
    Ok((address, server.run()))
}

/// Runs the server until it is told to stop (SIGINT, SIGTERM), and prints where it listens: one line, `http://…`.
pub async fn serve(listen: &str, script: Script, log: Option<PathBuf>) -> anyhow::Result<()> {
    let (address, server) = start(listen, script, log)?;
    let mut out = std::io::stdout();
    writeln!(out, "http://{address}")?;
    out.flush()?;
    server.await.context("the scripted model stopped")
}

struct State {
    script: Script,
    records: Records,
}

async fn requests(state: Data<State>) -> HttpResponse {
    HttpResponse::Ok().json(state.records.all())
}

async fn totals(state: Data<State>) -> HttpResponse {
    HttpResponse::Ok().json(state.records.totals())
}

/// A count costs nothing, so it is not among the requests.
async fn count_tokens(body: Bytes) -> HttpResponse {
    HttpResponse::Ok().json(serde_json::json!({ "input_tokens": script::tokens(body.len()) }))
}

async fn messages(request: HttpRequest, body: Bytes, state: Data<State>) -> HttpResponse {
    answer(Dialect::Anthropic, &request, &body, &state).await
}

async fn chat(request: HttpRequest, body: Bytes, state: Data<State>) -> HttpResponse {
    answer(Dialect::OpenaiChat, &request, &body, &state).await
}

async fn respond(request: HttpRequest, body: Bytes, state: Data<State>) -> HttpResponse {
    answer(Dialect::OpenaiResponses, &request, &body, &state).await
}

async fn answer(dialect: Dialect, request: &HttpRequest, body: &Bytes, state: &State) -> HttpResponse {
    let header = |name: &str| request.headers().get(name).and_then(|value| value.to_str().ok());
    let bearer = header("authorization").and_then(|value| value.strip_prefix("Bearer "));
    let key = header("x-api-key").or(bearer);
    let refuse =
        |status: StatusCode, message: &str| HttpResponse::build(status).json(dialect.error(status.as_u16(), message));
    let Some(asked) = Asked::read(body) else {
        state.records.add(RequestRecord::new(dialect, body, key));
        return refuse(StatusCode::BAD_REQUEST, "the body is not a JSON object with messages or input");
    };
    let record = RequestRecord { model: asked.model.clone(), ..RequestRecord::new(dialect, body, key) };
    if asked.for_title {
        let played = Played::aside(&asked, body.len());
        state.records.add(RequestRecord { usage: Some(played.usage), ..record });
        return say(dialect, &played, &asked, None);
    }
    let Some((name, conversation)) = state.script.find(&asked.first_message) else {
        state.records.add(record);
        return refuse(StatusCode::NOT_FOUND, "no script matches the first message");
    };
    let record = RequestRecord { script: Some(name.to_owned()), turn: Some(asked.turn), ..record };
    let Some(turn) = conversation.turns.get(asked.turn) else {
        state.records.add(record);
        return refuse(StatusCode::BAD_REQUEST, &format!("the script {name:?} has no turn {}", asked.turn));
    };
    let fault = turn.fault.as_ref().filter(|fault| state.records.fault_is_due(&asked, fault.times));
    let played = Played::new(turn, &asked, body.len());
    let usage = fault.is_none_or(|fault| !fault.kind.before_any_work()).then_some(played.usage);
    let record = RequestRecord { fault: fault.map(|fault| fault.kind), usage, ..record };
    state.records.add(record);
    if let Some(delay) = turn.delay_ms {
        tokio::time::sleep(Duration::from_millis(delay).min(MAX_HANG)).await;
    }
    if let Some(fault) = fault {
        return fault::answer(fault, dialect, &played, &asked).await;
    }
    say(dialect, &played, &asked, turn.pace_ms.map(Duration::from_millis))
}

/// The whole of an answer, as it was asked for.
fn say(dialect: Dialect, played: &Played, asked: &Asked, pace: Option<Duration>) -> HttpResponse {
    if asked.stream {
        events(dialect.stream(played, asked), pace)
    } else {
        HttpResponse::Ok().json(dialect.json(played, asked))
    }
}

/// A stream of events, each in a chunk of its own.
fn events(events: Vec<String>, pace: Option<Duration>) -> HttpResponse {
    let body = stream::iter(events).then(move |event| async move {
        if let Some(pace) = pace {
            tokio::time::sleep(pace).await;
        }
        Ok::<_, Infallible>(Bytes::from(event))
    });
    stream_of(BodyStream::new(body))
}

fn stream_of(body: impl MessageBody + 'static) -> HttpResponse {
    HttpResponse::Ok().content_type("text/event-stream").body(body)
}
