//! The built-in agent's calls: they need no proxy, and keep to the same breakers as everybody's.

use std::time::Duration;

use async_trait::async_trait;
use secrecy::SecretString;
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

use super::Gateway;
use super::relay::health;
use crate::model::breaker::{Admission, Health};
use crate::model::retry::MAX_RETRY_AFTER;
use crate::model::{Charge, FaultClass, ModelClient, ModelFailure, ModelReply, ModelRequest};

/// An admission to a provider. Dropped, it says how it went, or that it is not known.
struct Admitted<'a> {
    gateway: &'a Gateway,
    provider: &'a str,
    probe: bool,
    health: Option<Health>,
}

impl Drop for Admitted<'_> {
    fn drop(&mut self) {
        self.gateway.report(self.provider, self.health, self.probe);
    }
}

impl Gateway {
    async fn admitted<'a>(
        &'a self,
        provider: &'a str,
        cancel: &CancellationToken,
    ) -> Result<Admitted<'a>, ModelFailure> {
        let mut waited = Duration::ZERO;
        loop {
            let wait = match self.admit(provider) {
                Admission::Wait(wait) => wait,
                admission => {
                    return Ok(Admitted {
                        gateway: self,
                        provider,
                        probe: admission == Admission::Probe,
                        health: None,
                    });
                }
            };
            waited = waited.saturating_add(wait);
            if waited > MAX_RETRY_AFTER {
                return Err(super::relay::left_alone(provider, wait));
            }
            tokio::select! {
                biased;
                () = cancel.cancelled() => {
                    let message = "the call was cancelled before it was made";
                    return Err(ModelFailure::new(FaultClass::Cancelled, Charge::Nothing, message));
                }
                () = self.clock.sleep(wait) => {}
            }
        }
    }
}

#[async_trait]
impl ModelClient for Gateway {
    async fn call(
        &self,
        request: &ModelRequest,
        key: Option<&SecretString>,
        deltas: Option<mpsc::Sender<String>>,
        cancel: CancellationToken,
    ) -> Result<ModelReply, ModelFailure> {
        let mut admitted = self.admitted(&request.model.provider, &cancel).await?;
        let answer = self.models.call(request, key, deltas, cancel).await;
        admitted.health = match &answer {
            Ok(_) => Some(Health::Up),
            Err(failure) => health(failure.class),
        };
        answer
    }
}
