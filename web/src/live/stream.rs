//! A live stream as a response: history, then what happens, with a sign of life in between.
//!
//! The subscription owns its cursor, so a slow reader is late and loses nothing. What bounds a reader who has stopped
//! reading is the socket: see [`bound_writes`].

use std::any::Any;
use std::collections::HashMap;
use std::time::Duration;

use actix_web::dev::Extensions;
use actix_web::http::header::{self, HeaderName};
use actix_web::web::{self, Bytes};
use actix_web::{HttpResponse, rt};
use futures_util::stream;
use orchestra_actors::Delta;
use orchestra_events::audience::{Audience, as_seen_by};
use orchestra_events::subscription::{Delivery, Subscription};
use orchestra_events::task::TaskEvent;
use orchestra_events::{ActorKind, Envelope, TaskId};
use tokio::sync::OwnedSemaphorePermit;
use tokio::sync::broadcast::{self, error::RecvError};
use tokio::time::{Instant, Interval, MissedTickBehavior, interval_at};

use super::frames::Format;
use crate::App;
use crate::app::READ_YOUR_WRITES;
use crate::auth::{Caller, Standing};
use crate::problem::Problem;

/// How often a quiet stream says that it is still there.
pub const HEARTBEAT: Duration = Duration::from_secs(15);
/// How long a reader may leave sent bytes unread before its connection is cut.
pub const WRITE_TIMEOUT: Duration = Duration::from_secs(60);
/// Teams of tasks that a stream over the whole log remembers; beyond it, it asks again.
const REMEMBERED_TEAMS: usize = 4_096;
/// The same of keys that have acted.
const REMEMBERED_ACTORS: usize = 1_024;

/// For `HttpServer::on_connect`: a reader who stops reading is cut off by the kernel after [`WRITE_TIMEOUT`]
/// (`TCP_USER_TIMEOUT`, tcp(7)), because a response's body is not asked for more while its socket is full.
pub fn bound_writes(connection: &dyn Any, _: &mut Extensions) {
    limit_writes(connection, WRITE_TIMEOUT);
}

/// The same with another limit.
pub fn limit_writes(connection: &dyn Any, limit: Duration) {
    let Some(socket) = connection.downcast_ref::<rt::net::TcpStream>() else { return };
    if let Err(error) = socket2::SockRef::from(socket).set_tcp_user_timeout(Some(limit)) {
        tracing::warn!("a connection has no write timeout: {error}");
    }
}

/// What the stream is about, beside its subscription.
pub enum Subject {
    /// One task: its deltas come along once its history has been sent.
    Task(TaskId),
    /// The whole log, as far as it belongs to one team (`None`: all of it).
    Log(Option<String>),
}

struct Live {
    app: web::Data<App>,
    standing: Standing,
    subscription: Subscription,
    subject: Subject,
    teams: HashMap<TaskId, String>,
    /// The team that reads; `None`: the operators.
    reader: Option<String>,
    /// Keys that have acted, and whether each is the reading team's own. Persons come and go, and are asked for anew.
    own: HashMap<String, bool>,
    deltas: Option<broadcast::Receiver<Delta>>,
    /// Its history has been sent.
    caught_up: bool,
    heartbeat: Interval,
    format: Format,
    opened: bool,
    _permit: OwnedSemaphorePermit,
}

enum Next {
    Ended,
    Delivery(Result<Delivery, orchestra_events::StoreError>),
    Delta(Result<Delta, RecvError>),
    Heartbeat,
}

async fn delta(deltas: &mut Option<broadcast::Receiver<Delta>>) -> Result<Delta, RecvError> {
    match deltas {
        Some(deltas) => deltas.recv().await,
        None => std::future::pending().await,
    }
}

impl Live {
    /// The next piece; `None` ends the stream.
    async fn piece(&mut self) -> Option<Bytes> {
        if !self.opened {
            self.opened = true;
            let opening = self.format.opening();
            if !opening.is_empty() {
                return Some(opening);
            }
        }
        loop {
            let next = tokio::select! {
                biased;
                () = self.standing.ended() => Next::Ended,
                delivery = self.subscription.next_delivery() => Next::Delivery(delivery),
                delta = delta(&mut self.deltas) => Next::Delta(delta),
                _ = self.heartbeat.tick() => Next::Heartbeat,
            };
            match next {
                Next::Ended => return None,
                Next::Delivery(Ok(Delivery::Event(envelope))) => {
                    if !self.belongs(&envelope).await {
                        continue;
                    }
                    self.heartbeat.reset();
                    self.listen();
                    let audience = self.audience(&envelope).await;
                    match as_seen_by(&envelope, audience).and_then(|seen| self.format.event(&seen)) {
                        Ok(frame) => return Some(frame),
                        Err(error) => {
                            tracing::error!(stream = %envelope.stream, "an event does not serialise: {error}")
                        }
                    }
                }
                Next::Delivery(Ok(Delivery::CaughtUp)) => {
                    self.caught_up = true;
                    self.listen();
                }
                Next::Delivery(Err(error)) => {
                    tracing::warn!("a live stream ends: {error}");
                    return None;
                }
                Next::Delta(Ok(delta)) => return Some(self.format.delta(&delta.text)),
                // Pieces were lost; what they add up to arrives as an event.
                Next::Delta(Err(RecvError::Lagged(_))) => {}
                // Nobody speaks in this task now. The next event or heartbeat asks again.
                Next::Delta(Err(RecvError::Closed)) => self.deltas = None,
                Next::Heartbeat => {
                    self.listen();
                    return Some(self.format.heartbeat());
                }
            }
        }
    }

    /// Listens to what the model is saying, once the history has been sent.
    fn listen(&mut self) {
        if let (Subject::Task(id), true, None) = (&self.subject, self.caught_up, &self.deltas) {
            self.deltas = Some(self.app.tasks.deltas(*id));
        }
    }

    /// Whether the event is the caller's to see.
    async fn belongs(&mut self, envelope: &Envelope) -> bool {
        let Subject::Log(Some(wanted)) = &self.subject else { return true };
        let Some(task) = envelope.stream.task_id() else {
            return match envelope.stream.category() {
                "ledger" => envelope.stream.as_str().strip_prefix("ledger-") == Some(wanted),
                _ => envelope.actor.team.as_ref() == Some(wanted),
            };
        };
        if let Some(team) = self.teams.get(&task) {
            return team == wanted;
        }
        let team = match TaskEvent::decode(envelope) {
            Ok(Some(TaskEvent::Created(spec))) => Some(spec.team),
            _ => {
                // The read models say whose task it is; they are at most moments behind.
                let waited = self.app.read.wait_for(envelope.position, READ_YOUR_WRITES).await;
                match (waited, self.app.read.task(task).await) {
                    (Ok(()), Ok(task)) => task.map(|task| task.spec.team),
                    (Err(error), _) | (_, Err(error)) => {
                        tracing::warn!(stream = %envelope.stream, "whose task it is could not be found out: {error}");
                        None
                    }
                }
            }
        };
        let Some(team) = team else { return false };
        let belongs = team == *wanted;
        if self.teams.len() >= REMEMBERED_TEAMS {
            self.teams.clear();
        }
        self.teams.insert(task, team);
        belongs
    }

    /// How much of the event the caller is told.
    async fn audience(&mut self, envelope: &Envelope) -> Audience {
        let team = match (&self.subject, &self.reader) {
            (Subject::Task(_), _) => return Audience::Team,
            (Subject::Log(_), None) => return Audience::Operators,
            (Subject::Log(_), Some(team)) => team,
        };
        if envelope.actor.origin.is_none() {
            return Audience::Team;
        }
        let actor = &envelope.actor.id;
        let own = match self.own.get(actor) {
            Some(own) => *own,
            None => {
                let waited = self.app.read.wait_for(envelope.position, READ_YOUR_WRITES).await;
                match (waited, self.app.read.is_of_team(actor.clone(), team.clone()).await) {
                    (Ok(()), Ok(own)) => {
                        if self.own.len() >= REMEMBERED_ACTORS {
                            self.own.clear();
                        }
                        if envelope.actor.kind == ActorKind::ApiKey {
                            self.own.insert(actor.clone(), own);
                        }
                        own
                    }
                    (Err(error), _) | (_, Err(error)) => {
                        tracing::warn!(stream = %envelope.stream, "whose actor it is could not be found out: {error}");
                        false
                    }
                }
            }
        };
        if own { Audience::OwnTeam } else { Audience::Team }
    }
}

/// Answers with a live stream.
pub fn respond(
    app: web::Data<App>,
    caller: &Caller,
    subscription: Subscription,
    subject: Subject,
    format: Format,
) -> Result<HttpResponse, Problem> {
    let permit = app.stream_permit()?;
    let mut heartbeat = interval_at(Instant::now() + HEARTBEAT, HEARTBEAT);
    heartbeat.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let live = Live {
        standing: Standing::of(&app, caller),
        app,
        subscription,
        subject,
        teams: HashMap::new(),
        reader: caller.only_team(),
        own: HashMap::new(),
        deltas: None,
        caught_up: false,
        heartbeat,
        format,
        opened: false,
        _permit: permit,
    };
    let pieces = stream::unfold(live, |mut live| async move {
        let piece = live.piece().await?;
        Some((Ok::<_, actix_web::Error>(piece), live))
    });
    Ok(HttpResponse::Ok()
        .content_type(format.content_type())
        .insert_header((header::CACHE_CONTROL, "no-store"))
        // For proxies that would otherwise hold the stream back.
        .insert_header((HeaderName::from_static("x-accel-buffering"), "no"))
        .streaming(pieces))
}
