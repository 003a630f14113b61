//! The caller of a request, as an extractor: a bearer key, or the dashboard's session cookie.

use std::fmt;
use std::future::{Ready, ready};
use std::net::IpAddr;
use std::sync::Arc;

use actix_web::dev::Payload;
use actix_web::http::header::{self, HeaderMap};
use actix_web::{FromRequest, HttpMessage as _, HttpRequest, web};
use jiff::Timestamp;
use orchestra_events::campaign::CampaignSpec;
use orchestra_events::key::{Bounds, KeyLimits, Scope};
use orchestra_events::session::{Holder, Session};
use orchestra_events::task::TaskSpec;
use orchestra_events::{Actor, ActorKind, EventId, KeyId, Origin, SessionId};
use sha2::{Digest as _, Sha256};

use super::limits::Verdict;
use super::{address, transport};
use crate::App;
use crate::problem::Problem;

/// How the caller showed who they are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Via {
    /// `Authorization: Bearer orc_…`.
    Key,
    /// The cookie of a session at the dashboard.
    Session(SessionId),
}

/// Whose rights a caller has.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Who {
    /// Those of a key they hold or signed in with.
    Key(KeyId),
    /// Those of a person whom an identity provider vouched for, as long as the session lasts.
    Person {
        /// The session.
        session: SessionId,
        /// The person, by a name that is the same in every session.
        id: Arc<str>,
    },
}

impl fmt::Display for Who {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Key(id) => id.fmt(f),
            Self::Person { id, .. } => f.write_str(id),
        }
    }
}

/// A thing that a key can be bound to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Bound {
    /// Its projects.
    Project,
    /// Its environments.
    Environment,
    /// Its kinds of work.
    TaskType,
    /// Its repositories.
    Repo,
    /// Its models.
    Model,
}

impl Bound {
    fn is_set(self, bounds: &Bounds) -> bool {
        match self {
            Self::Project => !bounds.projects.is_empty(),
            Self::Environment => !bounds.environments.is_empty(),
            Self::TaskType => !bounds.task_types.is_empty(),
            Self::Repo => !bounds.repos.is_empty(),
            Self::Model => !bounds.models.is_empty(),
        }
    }

    const fn plural(self) -> &'static str {
        match self {
            Self::Project => "projects",
            Self::Environment => "environments",
            Self::TaskType => "task types",
            Self::Repo => "repositories",
            Self::Model => "models",
        }
    }
}

/// Who is calling.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Caller {
    /// Whose rights they have.
    pub who: Who,
    /// What its owner calls it.
    pub name: String,
    /// The team they act for; none for an operator.
    pub team: Option<String>,
    /// What they may do.
    pub scopes: Vec<Scope>,
    /// How they showed it.
    pub via: Via,
    /// What of their team's things is theirs.
    pub bounds: Arc<Bounds>,
    /// How much they may ask at once, where their key says so itself.
    pub limits: KeyLimits,
    /// When their rights end by themselves.
    pub ends: Option<Timestamp>,
    /// Which text of their key they showed: how often it had been rotated when that was made.
    pub generation: u32,
    /// Where they called from, as far as that is known.
    pub address: Option<IpAddr>,
    /// The program they called with, by its own word.
    pub user_agent: Option<String>,
    /// The request they are at, where they gave it a name of its own: the same for each repeat of it, and for one that was
    /// claimed in the log the id of its claim.
    pub request: Option<EventId>,
}

impl Caller {
    /// Somebody of this name, with no rights yet.
    pub fn named(who: Who, name: impl Into<String>) -> Self {
        Self {
            who,
            name: name.into(),
            team: None,
            scopes: Vec::new(),
            via: Via::Key,
            bounds: Arc::default(),
            limits: KeyLimits::default(),
            ends: None,
            generation: 0,
            address: None,
            user_agent: None,
            request: None,
        }
    }

    /// A person in their session, with the rights of the team that they have chosen. `None`: a key decides.
    pub fn person(id: SessionId, session: &Session) -> Option<Self> {
        let membership = session.membership()?;
        let who = Who::Person { session: id, id: session.grant.holder.id().into() };
        Some(Self {
            team: membership.team.clone(),
            scopes: membership.scopes(),
            via: Via::Session(id),
            ..Self::named(who, session.grant.name.clone())
        })
    }

    /// Whether they may do everything, for every team.
    pub fn is_admin(&self) -> bool {
        self.scopes.contains(&Scope::Admin)
    }

    /// Whether they may do this at all.
    pub fn may(&self, scope: Scope) -> bool {
        self.is_admin() || self.scopes.contains(&scope)
    }

    /// The same, as the answer that says what is missing.
    pub fn require(&self, scope: Scope) -> Result<(), Problem> {
        if self.may(scope) { Ok(()) } else { Err(Problem::missing_scope(scope)) }
    }

    /// Whether this team's things exist for them.
    pub fn sees(&self, team: &str) -> bool {
        self.is_admin() || self.team.as_deref() == Some(team)
    }

    /// Whether this task, or a task like it, exists for them.
    pub fn sees_task(&self, spec: &TaskSpec) -> bool {
        self.sees(&spec.team) && self.bounds.admits(spec).is_ok()
    }

    /// Whether this campaign exists for them: all of its tasks would.
    pub fn sees_campaign(&self, spec: &CampaignSpec) -> bool {
        self.sees_task(&spec.template) && spec.repos.iter().all(|repo| self.bounds.admits_repo(&repo.repo))
    }

    /// Refuses what cannot be narrowed to a part of a team's things, where only a part is theirs. Where they may call from
    /// narrows nothing.
    pub fn require_whole_team(&self, what: &str) -> Result<(), Problem> {
        self.require_unbound(what, &[Bound::Project, Bound::Environment, Bound::TaskType, Bound::Repo, Bound::Model])
    }

    /// The same for an answer that can be narrowed by everything but these.
    pub fn require_unbound(&self, what: &str, bounds: &[Bound]) -> Result<(), Problem> {
        match bounds.iter().find(|bound| bound.is_set(&self.bounds)) {
            Some(bound) => Err(Problem::too_wide(what, bound.plural())),
            None => Ok(()),
        }
    }

    /// The team whose things they see; `None`: every team's. An ordinary key without a team sees nothing, which the
    /// empty name stands for: no team has it.
    pub fn only_team(&self) -> Option<String> {
        if self.is_admin() { None } else { Some(self.team.clone().unwrap_or_default()) }
    }

    /// The team to read for, given the one asked for (`Some(None)`: every team). `None`: they do not see that team.
    pub fn narrow(&self, asked: Option<String>) -> Option<Option<String>> {
        match (self.only_team(), asked) {
            (None, asked) => Some(asked),
            (Some(own), None) => Some(Some(own)),
            (Some(own), Some(asked)) => (own == asked).then_some(Some(own)),
        }
    }

    /// Who they are in an event about a thing of this team.
    pub fn actor_for(&self, team: &str) -> Actor {
        Actor { team: Some(team.to_owned()), ..self.actor() }
    }

    /// Who they are in an event.
    pub fn actor(&self) -> Actor {
        let kind = match self.via {
            Via::Key => ActorKind::ApiKey,
            Via::Session(_) => ActorKind::Person,
        };
        let origin = Origin {
            name: address::kept(&self.name),
            address: self.address,
            user_agent: self.user_agent.clone(),
            request: self.request,
        };
        Actor { kind, id: self.who.to_string(), team: self.team.clone(), origin: origin.known() }
    }
}

fn bearer(headers: &HeaderMap) -> Option<&str> {
    let (scheme, key) = headers.get(header::AUTHORIZATION)?.to_str().ok()?.split_once(' ')?;
    scheme.eq_ignore_ascii_case("bearer").then_some(key.trim())
}

/// Whether a browser sent this from one of our own pages. Only what changes something has to prove it.
pub fn same_origin(request: &HttpRequest) -> bool {
    if request.method().is_safe() {
        return true;
    }
    let text = |name: &str| request.headers().get(name).and_then(|value| value.to_str().ok());
    match (text("sec-fetch-site"), text("origin")) {
        (Some(site), _) => site == "same-origin",
        (None, Some(origin)) => {
            let host = origin.split_once("://").map(|(_, host)| host);
            host.is_some() && host == text("host")
        }
        (None, None) => false,
    }
}

/// Somebody who is not let in, and who that is as far as it can be told: the answer is the same, the record is not.
struct Stranger {
    problem: Problem,
    whose: Option<Box<Caller>>,
}

impl From<Problem> for Stranger {
    fn from(problem: Problem) -> Self {
        Self { problem, whose: None }
    }
}

fn recognise(app: &App, request: &HttpRequest) -> Result<Caller, Stranger> {
    if request.headers().contains_key(header::AUTHORIZATION) {
        let key = bearer(request.headers()).ok_or_else(Problem::unknown_key)?;
        // Both are asked in any case, so that a key that is over takes as long as one that never was.
        let (stands, whose) = (app.keys.authenticate(key), app.keys.whose(key));
        return stands.ok_or_else(|| Stranger { problem: Problem::unknown_key(), whose: whose.map(Box::new) });
    }
    let cookie = transport::session_cookie(app, request).ok_or_else(Problem::unauthenticated)?;
    let open = app.sessions.find(&cookie).ok_or_else(Problem::unauthenticated)?;
    // What a key may do is asked again: one that was revoked or rotated away ends its sessions too.
    let Some(caller) = app.signed_in(open.id, &open.session) else {
        let whose = match &open.session.grant.holder {
            Holder::Key { key } => app.keys.whose_id(*key),
            Holder::Person { .. } => None,
        };
        let whose = whose.map(|caller| Box::new(Caller { via: Via::Session(open.id), ..caller }));
        return Err(Stranger { problem: Problem::unauthenticated(), whose });
    };
    if same_origin(request) {
        Ok(caller)
    } else {
        Err(Stranger { problem: Problem::cross_site(), whose: Some(Box::new(caller)) })
    }
}

/// What was found out about the caller of a request, once, however often it is asked.
#[derive(Clone)]
pub(super) struct Recognised {
    /// Who it is.
    pub caller: Caller,
    /// Why they are not let in all the same.
    refused: Option<Problem>,
}

/// Who is calling, or the problem that says how to show it: a key or a session that is known, used from where it may
/// be, and not too often. Counts a request once, however often it is asked.
pub fn identify(request: &HttpRequest) -> Result<Caller, Problem> {
    let known = request.extensions().get::<Recognised>().cloned();
    let Recognised { caller, refused } = match known {
        Some(known) => known,
        None => look(request)?,
    };
    match refused {
        Some(problem) => Err(problem),
        None => Ok(caller),
    }
}

/// The name that a caller gave a request, as an id: of the caller and the name, so that two callers' names do not meet.
fn named(headers: &HeaderMap, who: &Who) -> Option<EventId> {
    let name = headers.get("idempotency-key")?.as_bytes();
    let hash = Sha256::new().chain_update(b"request\n").chain_update(who.to_string()).chain_update(b"\n");
    let hash: [u8; 32] = hash.chain_update(name).finalize().into();
    let bytes = *hash.first_chunk::<16>()?;
    Some(EventId(uuid::Builder::from_bytes(bytes).with_version(uuid::Version::Custom).into_uuid()))
}

fn look(request: &HttpRequest) -> Result<Recognised, Problem> {
    let app = request.app_data::<web::Data<App>>().ok_or_else(|| Problem::internal("no application"))?;
    let peer = address::peer(request);
    let from = app.proxies.origin(peer, request.headers());
    let recognised = recognise(app, request);
    let caller = match recognised {
        Ok(caller) => Caller {
            address: from,
            user_agent: address::user_agent(request.headers()),
            request: named(request.headers(), &caller.who),
            ..caller
        },
        Err(Stranger { problem, whose }) => {
            // Whoever brings nothing guesses nothing.
            let guessed = request.headers().contains_key(header::AUTHORIZATION);
            let verdict = guessed.then(|| app.limits.failed(from.or(peer)));
            let Verdict { allowance, refused } = verdict.unwrap_or(Verdict { allowance: None, refused: None });
            allowance.map(|allowance| request.extensions_mut().insert(allowance));
            let problem = refused.unwrap_or(problem);
            if let Some(caller) = whose {
                let user_agent = address::user_agent(request.headers());
                let caller = Caller { address: from, user_agent, ..*caller };
                let refused = Some(problem.clone());
                request.extensions_mut().insert(Recognised { caller, refused });
            }
            return Err(problem);
        }
    };
    let mut refused = (!caller.bounds.admits_address(from)).then(|| Problem::address_not_allowed(from));
    if refused.is_none() {
        let verdict = app.limits.check(&caller);
        verdict.allowance.map(|allowance| request.extensions_mut().insert(allowance));
        refused = verdict.refused;
    }
    if refused.is_none() {
        app.keys.used(&caller, Timestamp::now());
    }
    let recognised = Recognised { caller, refused };
    request.extensions_mut().insert(recognised.clone());
    Ok(recognised)
}

impl FromRequest for Caller {
    type Error = Problem;
    type Future = Ready<Result<Self, Problem>>;

    fn from_request(request: &HttpRequest, _: &mut Payload) -> Self::Future {
        let known = request.extensions().get::<Self>().cloned();
        ready(known.ok_or_else(|| Problem::internal("a handler asks who is calling, and its row asks nobody")))
    }
}
