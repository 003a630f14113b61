//! What is known about a named request, and what can be asked of it.

use super::event::RequestEvent;

/// A request as its events tell it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Request {
    /// Method and path that it was last claimed for.
    pub endpoint: String,
    /// The keyed hash of what it last asked for.
    pub content: String,
    /// How it stands.
    pub standing: Standing,
}

/// How a request stands.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Standing {
    /// Somebody is doing it, or died while doing it.
    Claimed,
    /// It was done.
    Answered {
        /// The HTTP status of the answer.
        status: u16,
        /// What it made, where it made something new.
        location: Option<String>,
    },
    /// It was refused, and may be tried again.
    Abandoned,
}

/// Something asked of a request.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Command {
    /// Let me do it.
    Claim {
        /// Method and path.
        endpoint: String,
        /// The keyed hash of what is asked for.
        content: String,
        /// Whoever claimed it before is known to be dead, and to have done nothing.
        forsaken: bool,
    },
    /// It is done.
    Answer {
        /// The HTTP status of the answer.
        status: u16,
        /// What it made.
        location: Option<String>,
    },
    /// It was refused.
    Abandon {
        /// The HTTP status of the refusal.
        status: u16,
    },
}

/// Why a command does nothing.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// The key was used for something else.
    #[error("the key came before with another request")]
    Reused,
    /// Somebody is doing it.
    #[error("the request is being worked on")]
    UnderWay,
    /// It was done before.
    #[error("the request was answered before")]
    Answered {
        /// The HTTP status of the answer.
        status: u16,
        /// What it made.
        location: Option<String>,
    },
    /// Nobody is doing it.
    #[error("nobody has claimed the request")]
    NotClaimed,
}

/// What the command makes happen, or why it does nothing.
pub fn decide(request: Option<&Request>, command: Command) -> Result<Vec<RequestEvent>, Refusal> {
    let standing = request.map(|request| &request.standing);
    match command {
        Command::Claim { endpoint, content, forsaken } => {
            let other = request.is_some_and(|request| request.endpoint != endpoint || request.content != content);
            match standing {
                // Nothing was done under this key: it is as good as new, also for something else.
                None | Some(Standing::Abandoned) => Ok(vec![RequestEvent::RequestClaimed { endpoint, content }]),
                Some(Standing::Claimed | Standing::Answered { .. }) if other => Err(Refusal::Reused),
                Some(Standing::Claimed) if forsaken => Ok(vec![RequestEvent::RequestClaimed { endpoint, content }]),
                Some(Standing::Claimed) => Err(Refusal::UnderWay),
                Some(Standing::Answered { status, location }) => {
                    Err(Refusal::Answered { status: *status, location: location.clone() })
                }
            }
        }
        Command::Answer { status, location } => match standing {
            Some(Standing::Claimed) => Ok(vec![RequestEvent::RequestAnswered { status, location }]),
            None | Some(Standing::Answered { .. } | Standing::Abandoned) => Err(Refusal::NotClaimed),
        },
        Command::Abandon { status } => match standing {
            Some(Standing::Claimed) => Ok(vec![RequestEvent::RequestAbandoned { status }]),
            None | Some(Standing::Answered { .. } | Standing::Abandoned) => Err(Refusal::NotClaimed),
        },
    }
}

/// The request after the event. Total: whatever happened is taken in. An answer whose claim was not read (a reader
/// may begin in the middle) stands for nothing.
pub fn evolve(request: Option<Request>, event: &RequestEvent) -> Option<Request> {
    match (request, event) {
        (_, RequestEvent::RequestClaimed { endpoint, content }) => {
            Some(Request { endpoint: endpoint.clone(), content: content.clone(), standing: Standing::Claimed })
        }
        (Some(request), RequestEvent::RequestAnswered { status, location }) => {
            Some(Request { standing: Standing::Answered { status: *status, location: location.clone() }, ..request })
        }
        (Some(request), RequestEvent::RequestAbandoned { .. }) => {
            Some(Request { standing: Standing::Abandoned, ..request })
        }
        (None, RequestEvent::RequestAnswered { .. } | RequestEvent::RequestAbandoned { .. }) => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn claim(content: &str, forsaken: bool) -> Command {
        Command::Claim { endpoint: "POST /v1/keys".to_owned(), content: content.to_owned(), forsaken }
    }

    fn after(request: Option<Request>, command: Command) -> Option<Request> {
        decide(request.as_ref(), command).unwrap().iter().fold(request, evolve)
    }

    #[test]
    fn a_request_is_done_once() {
        let claimed = after(None, claim("a", false));
        assert_eq!(decide(claimed.as_ref(), claim("a", false)), Err(Refusal::UnderWay));
        assert_eq!(decide(claimed.as_ref(), claim("b", true)), Err(Refusal::Reused));
        let location = Some("/v1/keys/key_1".to_owned());
        let answered = after(claimed, Command::Answer { status: 201, location: location.clone() });
        assert_eq!(decide(answered.as_ref(), claim("a", true)), Err(Refusal::Answered { status: 201, location }));
        assert_eq!(decide(answered.as_ref(), claim("b", false)), Err(Refusal::Reused));
        assert_eq!(decide(answered.as_ref(), Command::Abandon { status: 409 }), Err(Refusal::NotClaimed));
    }

    #[test]
    fn what_was_refused_or_forsaken_may_be_tried_again() {
        let claimed = after(None, claim("a", false));
        let taken_over = after(claimed.clone(), claim("a", true));
        assert_eq!(taken_over, claimed);
        let abandoned = after(claimed, Command::Abandon { status: 422 });
        assert_eq!(after(abandoned, claim("b", false)).map(|request| request.content), Some("b".to_owned()));
        assert_eq!(decide(None, Command::Answer { status: 200, location: None }), Err(Refusal::NotClaimed));
    }

    #[test]
    fn the_shape_of_the_events_is_fixed() {
        let json = |event: RequestEvent| format!("{} {}", event.kind(), event.data().unwrap().get());
        let claimed = RequestEvent::RequestClaimed { endpoint: "POST /v1/keys".to_owned(), content: "0f".to_owned() };
        assert_eq!(json(claimed), r#"request-claimed {"endpoint":"POST /v1/keys","content":"0f"}"#);
        let answered = RequestEvent::RequestAnswered { status: 202, location: None };
        assert_eq!(json(answered), r#"request-answered {"status":202}"#);
        let answered = RequestEvent::RequestAnswered { status: 201, location: Some("/v1/keys/key_1".to_owned()) };
        assert_eq!(json(answered), r#"request-answered {"status":201,"location":"/v1/keys/key_1"}"#);
        assert_eq!(json(RequestEvent::RequestAbandoned { status: 409 }), r#"request-abandoned {"status":409}"#);
    }
}
