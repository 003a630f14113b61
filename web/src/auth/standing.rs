//! Whether the rights with which something long was begun still stand: asked by live streams, which outlive their request.

use std::time::Duration;

use actix_web::web;
use jiff::Timestamp;
use tokio::sync::watch;

use super::Caller;
use super::caller::Via;
use crate::App;

/// The longest a stream waits before it asks again although nothing rang: clocks are set.
const ASK_AGAIN: Duration = Duration::from_secs(60 * 60);
/// The shortest, where a clock is a little early.
const SHORTEST: Duration = Duration::from_millis(10);

/// A caller's rights, watched.
pub struct Standing {
    app: web::Data<App>,
    caller: Caller,
    /// What is cut of keys, and of sessions.
    cuts: [watch::Receiver<u64>; 2],
}

impl Standing {
    /// Watches the rights of this caller.
    pub fn of(app: &web::Data<App>, caller: &Caller) -> Self {
        // Everything that was cut before this is looked at once more.
        let mut cuts = [app.keys.cuts(), app.sessions.cuts()];
        cuts[0].mark_changed();
        Self { app: app.clone(), caller: caller.clone(), cuts }
    }

    /// When they end by themselves.
    fn ends(&self) -> Option<Timestamp> {
        let session = match self.caller.via {
            Via::Session(id) => self.app.sessions.get(id).map(|session| session.grant.ends),
            Via::Key => None,
        };
        self.caller.ends.into_iter().chain(session).min()
    }

    /// Resolves once they are gone: within a moment of a revocation, a rotation's end, the session's or their own. May be
    /// dropped and asked for again.
    pub async fn ended(&mut self) {
        loop {
            if self.cuts.iter().any(|cuts| cuts.has_changed().unwrap_or(true)) {
                for cuts in &mut self.cuts {
                    cuts.borrow_and_update();
                }
                let Some(now) = self.app.standing(&self.caller) else { return };
                // A person who speaks for another of their teams opens its pages anew.
                if now.team != self.caller.team || now.scopes != self.caller.scopes {
                    return;
                }
                self.caller.ends = now.ends;
            }
            let wait = self.ends().map_or(ASK_AGAIN, |ends| {
                let left = ends.duration_since(Timestamp::now());
                Duration::try_from(left).unwrap_or_default().clamp(SHORTEST, ASK_AGAIN)
            });
            let [keys, sessions] = &mut self.cuts;
            tokio::select! {
                changed = keys.changed() => match changed {
                    Ok(()) => keys.mark_changed(),
                    // The keys are gone with the server.
                    Err(_) => return,
                },
                changed = sessions.changed() => match changed {
                    Ok(()) => sessions.mark_changed(),
                    Err(_) => return,
                },
                () = tokio::time::sleep(wait) => keys.mark_changed(),
            }
        }
    }
}
