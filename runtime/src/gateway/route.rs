//! Which provider a request goes to, under which name, at which price, and with whose key.

use std::sync::Arc;

use hyper::StatusCode;
use jiff::civil::Date;
use secrecy::SecretString;

use super::errors::Refusal;
use super::{Api, Session};
use crate::model::provider::Provider;
use crate::model::{Models, ResolvedModel};

/// Who is asked, and for what price.
#[derive(Debug, Clone)]
pub(super) struct Target {
    pub model: ResolvedModel,
    /// Whether the task's own key may be sent there.
    pub own: bool,
    /// Whether its price depends on a tier that is named in the request.
    pub bills_tiers: bool,
    /// Anthropic itself.
    pub is_anthropic: bool,
    /// OpenAI itself, which knows an output limit by its newer name.
    pub renamed: bool,
}

impl Target {
    /// As charges and allow-lists name it.
    pub fn name(&self) -> String {
        format!("{}/{}", self.model.provider, self.model.model_id)
    }
}

/// Finds the target of a model's name: the task's own model and provider go first.
pub(super) fn find(models: &Models, session: &Session, api: Api, name: &str, day: Date) -> Result<Target, Refusal> {
    let own = &session.model;
    let beside = |name: &str| models.resolve_on(&format!("{}/{name}", own.provider), day).ok();
    // A name without a provider is looked for where the task's own model is, then where it is known to belong.
    let resolved = match name {
        _ if name == own.model_id => beside(name).ok_or_else(|| unpriced(own)),
        _ if !name.contains('/') => match beside(name) {
            Some(model) => Ok(model),
            None => models.resolve_on(name, day).map_err(|error| error.to_string()),
        },
        _ => models.resolve_on(name, day).map_err(|error| error.to_string()),
    };
    let not_found = |why: String| Refusal::new(StatusCode::NOT_FOUND, why);
    let model = resolved.map_err(|why| not_found(format!("{why}.")))?;
    let Some(provider) = models.providers.get(&*model.provider) else {
        return Err(not_found(format!("No model provider is named {}.", model.provider)));
    };
    if !api.endpoint().served_by(provider.dialect) {
        let path = if api.is_anthropic() { "/v1/chat/completions or /v1/responses" } else { "/v1/messages" };
        return Err(not_found(format!(
            "The model {} is served by {}, which does not speak this dialect; send the request to {path}.",
            model.model_id, model.provider
        )));
    }
    let target = Target {
        own: model.provider == own.provider,
        bills_tiers: provider.bills_service_tiers(),
        is_anthropic: provider.is_anthropic(),
        renamed: provider.is_openai(),
        model,
    };
    if !(session.allowed)(&target.name()) {
        return Err(Refusal::new(
            StatusCode::FORBIDDEN,
            format!(
                "This team may not use the model {}; use {}, or ask for it to be allowed.",
                target.name(),
                own.model_id
            ),
        ));
    }
    Ok(target)
}

fn unpriced(model: &ResolvedModel) -> String {
    format!("the model {} of {} has no price today", model.model_id, model.provider)
}

/// The key for one attempt. The task's own goes to its own provider only; keys may change at any time, so it is asked for
/// anew.
pub(super) fn key(provider: &Provider, target: &Target, session: &Session) -> Result<Option<Key>, String> {
    let callers = if target.own { (session.key)() } else { None };
    let key = match callers {
        Some(key) => Some(Key { secret: Arc::new(key), callers: true }),
        None => provider.operator_key.clone().map(|key| Key { secret: Arc::new(key), callers: false }),
    };
    if key.is_none() && provider.key_required {
        return Err(if target.own {
            format!("No model key for {} was given; supply one with PUT /v1/tasks/{{id}}/credentials.", provider.name)
        } else {
            format!(
                "The task's key belongs to {} and is sent to nobody else; for {} the operator must set a key.",
                session.model.provider, provider.name
            )
        });
    }
    Ok(key)
}

/// A key, and whose it is.
#[derive(Clone)]
pub(super) struct Key {
    pub secret: Arc<SecretString>,
    pub callers: bool,
}
