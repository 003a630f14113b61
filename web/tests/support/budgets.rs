//! Budgets of tests: the real ledger's rules over a state in memory.

use std::collections::BTreeMap;
use std::sync::Mutex;

use async_trait::async_trait;
use jiff::Timestamp;
use orchestra_actors::BudgetService;
use orchestra_actors::service::{FieldError, ServiceError};
use orchestra_events::Actor;
use orchestra_events::ledger::{Budget, Command, Scope, State, View, Zones, decide, evolve, view};

/// One state per team.
#[derive(Default)]
pub struct Budgets(Mutex<BTreeMap<String, State>>);

fn zones(state: &State) -> Zones {
    let mut zones = Zones::utc();
    for name in state.time_zones() {
        zones.insert(name, jiff::tz::TimeZone::get(name).expect("a zone that was checked"));
    }
    zones
}

#[async_trait]
impl BudgetService for Budgets {
    async fn budget(&self, scope: &Scope) -> Result<View, ServiceError> {
        let mut states = self.0.lock().expect("nobody panics under it");
        let state = states.entry(scope.team().to_owned()).or_default();
        Ok(view(state, scope, Timestamp::now(), &zones(state)))
    }

    async fn budgets(&self, team: &str) -> Result<Vec<View>, ServiceError> {
        let mut states = self.0.lock().expect("nobody panics under it");
        let state = states.entry(team.to_owned()).or_default();
        Ok(state.budgets().map(|(scope, _)| view(state, scope, Timestamp::now(), &zones(state))).collect())
    }

    async fn set_budget(&self, scope: &Scope, budget: Budget, _actor: Actor) -> Result<View, ServiceError> {
        {
            let mut states = self.0.lock().expect("nobody panics under it");
            let state = states.entry(scope.team().to_owned()).or_default();
            let mut zones = zones(state);
            if let Some(name) = &budget.time_zone {
                zones.insert(name.clone(), jiff::tz::TimeZone::get(name).expect("a zone that was checked"));
            }
            let decided = decide(state, Command::SetBudget { scope: scope.clone(), budget }, &zones);
            let events = decided.map_err(|refusal| {
                ServiceError::Invalid(vec![FieldError { pointer: String::new(), detail: refusal.to_string() }])
            })?;
            *state = events.iter().fold(std::mem::take(state), evolve);
        }
        self.budget(scope).await
    }
}
