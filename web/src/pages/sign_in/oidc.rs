//! `/sign-in/oidc`: to the identity provider, and back from it.

use actix_web::cookie::SameSite;
use actix_web::cookie::time::Duration as CookieAge;
use actix_web::http::{StatusCode, header};
use actix_web::{HttpMessage as _, HttpRequest, HttpResponse, web};
use orchestra_actors::{Identity, IdentityError};
use orchestra_events::session::state::MAX_MEMBERSHIPS;
use orchestra_events::session::{Holder, Way};
use orchestra_events::{Actor, ActorKind};
use serde::Deserialize;

use super::{Next, OnwardPage, begin, own_path};
use crate::App;
use crate::auth::people::{self, Bond, People};
use crate::auth::watch::TakenDown;
use crate::auth::{NewSession, transport};
use crate::pages::error::PageError;
use crate::pages::shell::page;
use crate::problem::{Code, Problem};

/// What the provider sends along.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub struct Answer {
    code: String,
    state: String,
    iss: Option<String>,
    error: Option<String>,
}

/// Why a sign-in came to nothing.
struct Failure {
    /// For the audit.
    reason: &'static str,
    /// For the person.
    detail: String,
    code: Code,
    holder: Option<Holder>,
}

impl Failure {
    fn new(reason: &'static str, code: Code, detail: impl Into<String>) -> Self {
        Self { reason, detail: detail.into(), code, holder: None }
    }
}

impl From<IdentityError> for Failure {
    fn from(error: IdentityError) -> Self {
        let detail = match &error {
            IdentityError::Busy => "Many people are signing in at this moment. Try again.".to_owned(),
            IdentityError::Unreachable(_) | IdentityError::Nonsense { .. } | IdentityError::Configuration(_) => {
                tracing::error!("nobody can sign in: {error}");
                "The identity provider does not answer as it should. Try again in a moment; if that does not help, whoever \
                 runs this server finds the reason in its log."
                    .to_owned()
            }
            IdentityError::Refused(_) | IdentityError::Token(_) => {
                tracing::warn!("a sign-in failed: {error}");
                "The identity provider did not confirm who you are. Sign in again; if that does not help, whoever runs this \
                 server finds the reason in its log."
                    .to_owned()
            }
        };
        let code = match error {
            IdentityError::Busy | IdentityError::Unreachable(_) => Code::Overloaded,
            IdentityError::Nonsense { .. } | IdentityError::Configuration(_) => Code::InternalError,
            IdentityError::Refused(_) | IdentityError::Token(_) => Code::Unauthenticated,
        };
        Self::new(error.reason(), code, detail)
    }
}

async fn failed(app: &App, request: &HttpRequest, failure: Failure) -> PageError {
    let actor = match &failure.holder {
        Some(holder) => Actor { kind: ActorKind::Person, id: holder.id(), ..transport::stranger(app, request) },
        None => transport::stranger(app, request),
    };
    request.extensions_mut().insert(TakenDown);
    app.sessions.refuse(&*app.store, Way::Oidc, failure.reason, failure.holder, &actor).await;
    PageError::from(Problem::new(failure.code, failure.detail)).back_to("/sign-in", "To the sign-in page")
}

fn provider(app: &App) -> Result<&People, PageError> {
    app.people.as_ref().ok_or_else(PageError::not_found)
}

/// `GET /sign-in/oidc`: binds the sign-in to this browser, and sends it to the provider.
pub async fn start(
    app: web::Data<App>,
    request: HttpRequest,
    next: web::Query<Next>,
) -> Result<HttpResponse, PageError> {
    let people = provider(&app)?;
    let bond = Bond::new(own_path(&next.next)).ok_or_else(|| Problem::internal("the system gave no random bytes"))?;
    let to = match people.begin(&bond).await {
        Ok(to) => to,
        Err(error) => return Err(failed(&app, &request, error.into()).await),
    };
    // The provider sends the browser back from another site, and this cookie has to come along.
    let mut cookie =
        transport::cookie(transport::is_https(&app, &request), people::COOKIE, bond.cookie(), SameSite::Lax);
    cookie.set_max_age(CookieAge::try_from(people::LIFETIME).ok());
    Ok(HttpResponse::SeeOther()
        .cookie(cookie)
        .insert_header((header::LOCATION, to))
        .insert_header((header::CACHE_CONTROL, "no-store"))
        .finish())
}

/// Who came back, if it is the browser that was sent.
async fn identify(people: &People, bond: Option<&Bond>, answer: &Answer) -> Result<Identity, Failure> {
    let again = "This sign-in was begun in another browser, or too long ago. Begin again.";
    let Some(bond) = bond else { return Err(Failure::new("no-sign-in", Code::Unauthenticated, again)) };
    if !bond.owns(&answer.state) {
        return Err(Failure::new("wrong-state", Code::Unauthenticated, again));
    }
    if answer.error.is_some() {
        let detail = "The identity provider did not let you through, or you went back. Begin again.";
        return Err(Failure::new("provider-refused", Code::Unauthenticated, detail));
    }
    Ok(people.finish(bond, &answer.code, answer.iss.as_deref()).await?)
}

/// What the person may do here, if anything.
fn admit(people: &People, identity: Identity) -> Result<NewSession, Failure> {
    let memberships = people.memberships(&identity.groups);
    let holder = Holder::Person { issuer: identity.issuer, subject: identity.subject };
    let refused = |reason, detail: &str| Failure {
        holder: Some(holder.clone()),
        ..Failure::new(reason, Code::Forbidden, detail)
    };
    if memberships.is_empty() {
        let detail = "The identity provider knows you, and none of your groups has a team on this server. Ask whoever runs \
                      it to let one of them in, or to put you into one that is.";
        return Err(refused("no-membership", detail));
    }
    if memberships.len() > MAX_MEMBERSHIPS {
        return Err(refused("too-many-teams", "Your groups have more teams on this server than one session holds."));
    }
    Ok(NewSession { holder, way: Way::Oidc, name: identity.name, memberships, generation: 0 })
}

/// `GET /sign-in/oidc/return`: where the provider sends the browser back to.
pub async fn finish(
    app: web::Data<App>,
    request: HttpRequest,
    answer: web::Query<Answer>,
) -> Result<HttpResponse, PageError> {
    let people = provider(&app)?;
    let https = transport::is_https(&app, &request);
    let (secure, plain) = people::COOKIE;
    let cookie = request.cookie(if https { secure } else { plain });
    let bond = cookie.and_then(|cookie| Bond::read(cookie.value()));
    let new = match identify(people, bond.as_ref(), &answer).await.and_then(|identity| admit(people, identity)) {
        Ok(new) => new,
        Err(failure) => return Err(failed(&app, &request, failure).await),
    };
    let actor = Actor {
        kind: ActorKind::Person,
        id: new.holder.id(),
        team: only_team(&new),
        origin: transport::origin(&app, &request, Some(&new.name)),
    };
    let next = bond.map(|bond| own_path(bond.next()).to_owned()).unwrap_or_default();
    let answer = page(StatusCode::OK, &OnwardPage::new(own_path(&next)));
    let mut answer = begin(&app, &request, new, &actor, answer).await?;
    // Used, and of no use any more.
    let mut gone = transport::cookie(https, people::COOKIE, String::new(), SameSite::Lax);
    gone.make_removal();
    answer.add_cookie(&gone).map_err(|error| Problem::internal(error.to_string()))?;
    Ok(answer)
}

/// The team whose event a sign-in is. Of who has several it is nobody's but the operators': each would see the others.
fn only_team(new: &NewSession) -> Option<String> {
    match &*new.memberships {
        [one] => one.team.clone(),
        _ => None,
    }
}
