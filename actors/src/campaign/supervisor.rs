//! The supervisor of the campaign actors: makes one from its stream when somebody needs it, and makes it again when it
//! dies.

use std::collections::HashMap;
use std::time::Duration;

use actix::prelude::*;
use orchestra_events::CampaignId;

use super::children::Means;
use super::{Ask, AskError, CampaignActor, Departure, Drain};

/// Messages that may wait for the supervisor.
pub const MAILBOX: usize = 1_024;
/// The wait before a dead actor is made again; doubled with each death in a row.
const FIRST_REVIVAL: Duration = Duration::from_millis(200);
/// The longest wait before a dead actor is made again. It is never given up: its tasks run, and somebody has to take
/// down how they end.
const LONGEST_REVIVAL: Duration = Duration::from_secs(60);
/// How often an actor that left just before the message came is made again for it.
const ASK_TRIES: u32 = 3;

/// Owns the factory of campaign actors.
pub(crate) struct CampaignSupervisor {
    means: Means,
    arbiter: ArbiterHandle,
    live: HashMap<CampaignId, Live>,
    deaths: HashMap<CampaignId, u32>,
    made: u64,
    draining: bool,
}

struct Live {
    address: Addr<CampaignActor>,
    /// Tells this actor's farewell from that of one before it.
    number: u64,
}

/// Passes a wish to a campaign's actor.
#[derive(Message)]
#[rtype(result = "Result<(), AskError>")]
pub(crate) struct Tell {
    /// The campaign.
    pub id: CampaignId,
    /// What is asked of it.
    pub ask: Wish,
}

/// What is asked of a campaign and by whom, as often as it takes.
pub(crate) type Wish = (orchestra_events::campaign::Command, orchestra_events::Actor);

/// Takes a campaign up.
#[derive(Message)]
#[rtype(result = "()")]
pub(crate) struct TakeUp(pub CampaignId);

#[derive(Message)]
#[rtype(result = "Option<Addr<CampaignActor>>")]
struct Fetch(CampaignId);

#[derive(Message)]
#[rtype(result = "()")]
struct Left {
    id: CampaignId,
    number: u64,
    departure: Departure,
}

impl CampaignSupervisor {
    /// A supervisor whose actors run on this arbiter.
    pub fn new(means: Means, arbiter: ArbiterHandle) -> Self {
        Self { means, arbiter, live: HashMap::new(), deaths: HashMap::new(), made: 0, draining: false }
    }

    /// The campaign's actor, made from its stream if there is none. `None` when the server is about to end.
    fn actor(&mut self, id: CampaignId, ctx: &mut Context<Self>) -> Option<Addr<CampaignActor>> {
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
                tracing::error!(campaign = %id, %error, "an actor's farewell was lost");
            }
        });
        let actor = move |_: &mut Context<CampaignActor>| CampaignActor::new(id, means, farewell);
        let address = CampaignActor::start_in_arbiter(&self.arbiter, actor);
        self.live.insert(id, Live { address: address.clone(), number });
        metrics::gauge!("orchestra_campaign_actors").set(self.live.len() as f64);
        Some(address)
    }
}

impl Actor for CampaignSupervisor {
    type Context = Context<Self>;

    fn started(&mut self, ctx: &mut Self::Context) {
        ctx.set_mailbox_capacity(MAILBOX);
    }
}

impl Handler<Tell> for CampaignSupervisor {
    type Result = ResponseFuture<Result<(), AskError>>;

    fn handle(&mut self, Tell { id, ask: (command, who) }: Tell, ctx: &mut Self::Context) -> Self::Result {
        let first = self.actor(id, ctx);
        let supervisor = ctx.address();
        Box::pin(async move {
            let mut address = first;
            for _ in 0..ASK_TRIES {
                let Some(actor) = address.take() else { break };
                match actor.send(Ask { command: command.clone(), who: who.clone() }).await {
                    Ok(answer) => return answer,
                    Err(MailboxError::Timeout) => break,
                    // It left just before the message came.
                    Err(MailboxError::Closed) => address = supervisor.send(Fetch(id)).await.ok().flatten(),
                }
            }
            Err(AskError::Busy)
        })
    }
}

impl Handler<Fetch> for CampaignSupervisor {
    type Result = MessageResult<Fetch>;

    fn handle(&mut self, Fetch(id): Fetch, ctx: &mut Self::Context) -> Self::Result {
        MessageResult(self.actor(id, ctx))
    }
}

impl Handler<TakeUp> for CampaignSupervisor {
    type Result = ();

    fn handle(&mut self, TakeUp(id): TakeUp, ctx: &mut Self::Context) {
        self.actor(id, ctx);
    }
}

impl Handler<Left> for CampaignSupervisor {
    type Result = ();

    fn handle(&mut self, Left { id, number, departure }: Left, ctx: &mut Self::Context) {
        if self.live.get(&id).is_none_or(|live| live.number != number) {
            return;
        }
        self.live.remove(&id);
        metrics::gauge!("orchestra_campaign_actors").set(self.live.len() as f64);
        match departure {
            Departure::Idle => drop(self.deaths.remove(&id)),
            Departure::Died => {
                let deaths = self.deaths.entry(id).or_default();
                *deaths += 1;
                let wait = FIRST_REVIVAL.saturating_mul(1 << (*deaths).min(16)).min(LONGEST_REVIVAL);
                tracing::warn!(campaign = %id, deaths = *deaths, "the campaign's actor died; again in {wait:?}");
                metrics::counter!("orchestra_campaign_actor_deaths_total").increment(1);
                ctx.run_later(wait, move |supervisor, ctx| drop(supervisor.actor(id, ctx)));
            }
        }
    }
}

impl Handler<Drain> for CampaignSupervisor {
    type Result = ();

    fn handle(&mut self, _: Drain, ctx: &mut Self::Context) {
        self.draining = true;
        for live in self.live.values() {
            ctx.spawn(live.address.send(Drain).into_actor(self).map(|_, _, _| ()));
        }
    }
}
