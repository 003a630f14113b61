//! What is known about a session, and what can be asked of it.

use super::event::{Grant, SessionEnd, SessionEvent};
use super::role::Membership;

/// Most teams that a person has roles in; a provider that names more is not believed.
pub const MAX_MEMBERSHIPS: usize = 64;

/// A session as its events tell it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Session {
    /// What it is.
    pub grant: Grant,
    /// Which of the memberships counts at present.
    pub chosen: usize,
    /// Why it is over, when it is over before its time.
    pub ended: Option<SessionEnd>,
}

impl Session {
    /// The membership that counts at present. None where a key decides.
    pub fn membership(&self) -> Option<&Membership> {
        self.grant.memberships.get(self.chosen)
    }
}

/// Something asked of a session.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Command {
    /// Let somebody in.
    Start(Box<Grant>),
    /// Go on for this team; none for the whole server.
    Choose(Option<String>),
    /// End it.
    End(SessionEnd),
}

/// Why a command does nothing.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// There is no such session, or none any more.
    #[error("there is no such session")]
    NoSuchSession,
    /// There is one of that id already.
    #[error("the session exists already")]
    Exists,
    /// The person has no role there.
    #[error("you have no role in that team")]
    NoSuchTeam,
    /// The person has roles in more teams than a session holds.
    #[error("a person has roles in at most {MAX_MEMBERSHIPS} teams")]
    TooManyTeams,
}

/// What the command makes happen, or why it does nothing.
pub fn decide(session: Option<&Session>, command: Command) -> Result<Vec<SessionEvent>, Refusal> {
    match (session, command) {
        (None, Command::Start(grant)) if grant.memberships.len() > MAX_MEMBERSHIPS => Err(Refusal::TooManyTeams),
        (None, Command::Start(grant)) => Ok(vec![SessionEvent::SessionStarted(grant)]),
        (Some(_), Command::Start(_)) => Err(Refusal::Exists),
        (None, Command::Choose(_) | Command::End(_)) => Err(Refusal::NoSuchSession),
        (Some(Session { ended: Some(_), .. }), Command::Choose(_)) => Err(Refusal::NoSuchSession),
        // Ending what is over changes nothing.
        (Some(Session { ended: Some(_), .. }), Command::End(_)) => Ok(Vec::new()),
        (Some(session), Command::Choose(team)) => {
            let place = session.grant.memberships.iter().position(|membership| membership.team == team);
            match place {
                None => Err(Refusal::NoSuchTeam),
                Some(place) if place == session.chosen => Ok(Vec::new()),
                Some(_) => Ok(vec![SessionEvent::TeamChosen { team }]),
            }
        }
        (Some(_), Command::End(why)) => Ok(vec![SessionEvent::SessionEnded { why }]),
    }
}

/// The session after the event. Total: whatever happened is taken in.
pub fn evolve(session: Option<Session>, event: &SessionEvent) -> Option<Session> {
    match (session, event) {
        (None, SessionEvent::SessionStarted(grant)) => {
            Some(Session { grant: (**grant).clone(), chosen: 0, ended: None })
        }
        (Some(session), SessionEvent::TeamChosen { team }) => {
            let place = session.grant.memberships.iter().position(|membership| membership.team == *team);
            Some(Session { chosen: place.unwrap_or(session.chosen), ..session })
        }
        (Some(session), SessionEvent::SessionEnded { why }) => {
            Some(Session { ended: session.ended.or(Some(*why)), ..session })
        }
        (session, SessionEvent::SessionStarted(_) | SessionEvent::SignInRefused(_)) => session,
        (None, SessionEvent::TeamChosen { .. } | SessionEvent::SessionEnded { .. }) => None,
    }
}

#[cfg(test)]
mod tests {
    use jiff::Timestamp;

    use super::super::event::{Holder, Refused, Way};
    use super::super::role::Role;
    use super::*;

    fn in_team(team: &str, role: Role) -> Membership {
        Membership { team: Some(team.to_owned()), role }
    }

    fn grant() -> Grant {
        Grant {
            holder: Holder::Person {
                issuer: "https://login.example.com/realms/a/".to_owned(),
                subject: "5f0".to_owned(),
            },
            way: Way::Oidc,
            name: "Ada".to_owned(),
            memberships: vec![
                in_team("platform", Role::Operator),
                in_team("mobile", Role::Viewer),
                Membership { team: None, role: Role::Admin },
            ],
            generation: 0,
            cookie_sha256: "00".repeat(32),
            ends: Timestamp::UNIX_EPOCH,
        }
    }

    fn after(session: Option<Session>, command: Command) -> Option<Session> {
        decide(session.as_ref(), command).expect("allowed").iter().fold(session, evolve)
    }

    #[test]
    fn a_session_is_for_one_team_at_a_time_and_over_for_good() {
        let started = after(None, Command::Start(Box::new(grant()))).expect("a session");
        assert_eq!(started.membership(), Some(&in_team("platform", Role::Operator)));
        assert_eq!(decide(Some(&started), Command::Start(Box::new(grant()))), Err(Refusal::Exists));
        let other = after(Some(started), Command::Choose(Some("mobile".to_owned()))).expect("a session");
        assert_eq!(other.membership(), Some(&in_team("mobile", Role::Viewer)));
        assert_eq!(decide(Some(&other), Command::Choose(Some("mobile".to_owned()))), Ok(Vec::new()));
        assert_eq!(decide(Some(&other), Command::Choose(Some("web".to_owned()))), Err(Refusal::NoSuchTeam));
        let server = after(Some(other), Command::Choose(None)).expect("a session");
        assert_eq!(server.membership().map(Membership::scopes), Some(vec![crate::key::Scope::Admin]));
        let over = after(Some(server), Command::End(SessionEnd::SignedOut)).expect("a session");
        assert_eq!(over.ended, Some(SessionEnd::SignedOut));
        assert_eq!(decide(Some(&over), Command::End(SessionEnd::Ended)), Ok(Vec::new()));
        assert_eq!(decide(Some(&over), Command::Choose(None)), Err(Refusal::NoSuchSession));
        let again = evolve(Some(over), &SessionEvent::SessionStarted(Box::new(grant())));
        assert!(again.is_some_and(|session| session.ended.is_some()), "what has ended stays ended");
    }

    #[test]
    fn nothing_is_made_of_nothing() {
        assert_eq!(decide(None, Command::Choose(None)), Err(Refusal::NoSuchSession));
        assert_eq!(decide(None, Command::End(SessionEnd::Ended)), Err(Refusal::NoSuchSession));
        let refused = Refused { way: Way::Key, reason: "unknown-key".to_owned(), holder: None, omitted: 0 };
        assert_eq!(evolve(None, &SessionEvent::SignInRefused(refused)), None);
        let many = Grant { memberships: vec![in_team("a", Role::Viewer); MAX_MEMBERSHIPS + 1], ..grant() };
        assert_eq!(decide(None, Command::Start(Box::new(many))), Err(Refusal::TooManyTeams));
    }

    #[test]
    fn the_shape_of_the_events_is_fixed() {
        let texts = [
            SessionEvent::SessionStarted(Box::new(grant())),
            SessionEvent::TeamChosen { team: None },
            SessionEvent::SessionEnded { why: SessionEnd::SignedOut },
            SessionEvent::SignInRefused(Refused {
                way: Way::Oidc,
                reason: "wrong-nonce".to_owned(),
                holder: Some(Holder::Key { key: crate::KeyId::from_uuid(uuid::Uuid::nil()) }),
                omitted: 3,
            }),
        ]
        .map(|event| event.data().expect("JSON").get().to_owned());
        assert_eq!(
            texts,
            [
                format!(
                    r#"{{"holder":{{"kind":"person","issuer":"https://login.example.com/realms/a/","subject":"5f0"}},"way":"oidc","name":"Ada","memberships":[{{"team":"platform","role":"operator"}},{{"team":"mobile","role":"viewer"}},{{"role":"admin"}}],"cookieSha256":"{}","ends":"1970-01-01T00:00:00Z"}}"#,
                    "00".repeat(32)
                ),
                r#"{"team":null}"#.to_owned(),
                r#"{"why":"signed-out"}"#.to_owned(),
                r#"{"way":"oidc","reason":"wrong-nonce","holder":{"kind":"key","key":"key_00000000000000000000000000"},"omitted":3}"#
                    .to_owned(),
            ]
        );
        assert_eq!(grant().holder.id(), "login.example.com/realms/a:5f0");
    }

    #[test]
    fn every_event_reads_back() {
        for event in [
            SessionEvent::SessionStarted(Box::new(grant())),
            SessionEvent::TeamChosen { team: Some("mobile".to_owned()) },
            SessionEvent::SessionEnded { why: SessionEnd::Crowded },
        ] {
            let text = format!(r#"{{"type":"{}","data":{}}}"#, event.kind(), event.data().expect("JSON").get());
            assert_eq!(serde_json::from_str::<SessionEvent>(&text).expect("an event"), event);
        }
    }
}
