//! The supervisor of the webhooks' actors: makes one from its stream, and makes it again when it dies.

use std::collections::HashMap;
use std::time::Duration;

use actix::prelude::*;
use orchestra_events::WebhookId;

use super::attempt::Means;
use super::{Departure, Drain, WebhookActor};

/// Messages that may wait for the supervisor.
pub const MAILBOX: usize = 1_024;
/// The wait before a dead actor is made again; doubled with each death in a row.
const FIRST_REVIVAL: Duration = Duration::from_millis(200);
/// The longest wait before a dead actor is made again. It is never given up: somebody waits to be told.
const LONGEST_REVIVAL: Duration = Duration::from_secs(60);
/// An actor that has lived for so long begins its deaths anew.
const LONG_LIFE: Duration = Duration::from_secs(600);

/// Owns the factory of the webhooks' actors.
pub(crate) struct WebhookSupervisor {
    means: Means,
    arbiter: ArbiterHandle,
    live: HashMap<WebhookId, Live>,
    deaths: HashMap<WebhookId, u32>,
    made: u64,
    draining: bool,
}

struct Live {
    address: Addr<WebhookActor>,
    born: tokio::time::Instant,
    /// Tells this actor's farewell from that of one before it.
    number: u64,
}

/// The webhook's actor, made from its stream if there is none. `None` when the server is about to end.
#[derive(Message)]
#[rtype(result = "Option<Addr<WebhookActor>>")]
pub(crate) struct Fetch(pub WebhookId);

/// How many there are.
#[derive(Message)]
#[rtype(result = "usize")]
pub(crate) struct Count;

#[derive(Message)]
#[rtype(result = "()")]
struct Left {
    id: WebhookId,
    number: u64,
    departure: Departure,
}

impl WebhookSupervisor {
    /// A supervisor whose actors run on this arbiter.
    pub fn new(means: Means, arbiter: ArbiterHandle) -> Self {
        Self { means, arbiter, live: HashMap::new(), deaths: HashMap::new(), made: 0, draining: false }
    }

    fn actor(&mut self, id: WebhookId, ctx: &mut Context<Self>) -> Option<Addr<WebhookActor>> {
        if let Some(live) = self.live.get(&id)
            && live.address.connected()
        {
            return Some(live.address.clone());
        }
        if self.draining {
            return None;
        }
        self.made += 1;
        let (number, supervisor, means) = (self.made, ctx.address(), self.means.clone());
        let farewell = Box::new(move |id, departure| {
            // The mailbox is bounded; an actor whose farewell finds it full is made again when it is next asked for.
            if let Err(error) = supervisor.try_send(Left { id, number, departure }) {
                tracing::error!(webhook = %id, %error, "an actor's farewell was lost");
            }
        });
        let actor = move |_: &mut Context<WebhookActor>| WebhookActor::new(id, means, farewell);
        let address = WebhookActor::start_in_arbiter(&self.arbiter, actor);
        let born = tokio::time::Instant::now();
        self.live.insert(id, Live { address: address.clone(), born, number });
        metrics::gauge!("orchestra_webhook_actors").set(self.live.len() as f64);
        Some(address)
    }
}

impl Actor for WebhookSupervisor {
    type Context = Context<Self>;

    fn started(&mut self, ctx: &mut Self::Context) {
        ctx.set_mailbox_capacity(MAILBOX);
    }
}

impl Handler<Fetch> for WebhookSupervisor {
    type Result = MessageResult<Fetch>;

    fn handle(&mut self, Fetch(id): Fetch, ctx: &mut Self::Context) -> Self::Result {
        MessageResult(self.actor(id, ctx))
    }
}

impl Handler<Count> for WebhookSupervisor {
    type Result = usize;

    fn handle(&mut self, _: Count, _ctx: &mut Self::Context) -> usize {
        self.live.len()
    }
}

impl Handler<Left> for WebhookSupervisor {
    type Result = ();

    fn handle(&mut self, Left { id, number, departure }: Left, ctx: &mut Self::Context) {
        let Some(live) = self.live.get(&id).filter(|live| live.number == number) else { return };
        let lived = live.born.elapsed();
        self.live.remove(&id);
        metrics::gauge!("orchestra_webhook_actors").set(self.live.len() as f64);
        match departure {
            Departure::Done => drop(self.deaths.remove(&id)),
            Departure::Died => {
                let deaths = self.deaths.entry(id).or_default();
                *deaths = if lived > LONG_LIFE { 1 } else { deaths.saturating_add(1) };
                let wait = FIRST_REVIVAL.saturating_mul(1 << (*deaths).min(16)).min(LONGEST_REVIVAL);
                tracing::warn!(webhook = %id, deaths = *deaths, "the webhook's actor died; again in {wait:?}");
                metrics::counter!("orchestra_webhook_actor_deaths_total").increment(1);
                ctx.run_later(wait, move |supervisor, ctx| drop(supervisor.actor(id, ctx)));
            }
        }
    }
}

impl Handler<Drain> for WebhookSupervisor {
    type Result = ();

    fn handle(&mut self, _: Drain, ctx: &mut Self::Context) {
        self.draining = true;
        for live in self.live.values() {
            ctx.spawn(live.address.send(Drain).into_actor(self).map(|_, _, _| ()));
        }
    }
}
