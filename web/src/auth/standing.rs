//! Whether the rights with which something long was begun still stand: asked by live streams, which outlive their request.

use std::time::Duration;

use actix_web::web;
use jiff::Timestamp;
use tokio::sync::watch;

use super::Caller;
use crate::App;

/// The longest a stream waits before it asks again although nothing rang: clocks are set.
const ASK_AGAIN: Duration = Duration::from_secs(60 * 60);
/// The shortest, where a clock is a little early.
const SHORTEST: Duration = Duration::from_millis(10);

/// A caller's rights, watched.
pub struct Standing {
    app: web::Data<App>,
    caller: Caller,
    cuts: watch::Receiver<u64>,
}

impl Standing {
    /// Watches the rights of this caller.
    pub fn of(app: &web::Data<App>, caller: &Caller) -> Self {
        // Everything that was cut before this is looked at once more.
        let mut cuts = app.keys.cuts();
        cuts.mark_changed();
        Self { app: app.clone(), caller: caller.clone(), cuts }
    }

    /// Resolves once they are gone: within a moment of a revocation, a rotation's end or their own. May be dropped and
    /// asked for again.
    pub async fn ended(&mut self) {
        loop {
            if self.cuts.has_changed().unwrap_or(true) {
                self.cuts.borrow_and_update();
                let Some(now) = self.app.standing(&self.caller) else { return };
                self.caller.ends = now.ends;
            }
            let wait = self.caller.ends.map_or(ASK_AGAIN, |ends| {
                let left = ends.duration_since(Timestamp::now());
                Duration::try_from(left).unwrap_or_default().clamp(SHORTEST, ASK_AGAIN)
            });
            tokio::select! {
                changed = self.cuts.changed() => match changed {
                    Ok(()) => self.cuts.mark_changed(),
                    // The keys are gone with the server.
                    Err(_) => return,
                },
                () = tokio::time::sleep(wait) => self.cuts.mark_changed(),
            }
        }
    }
}
