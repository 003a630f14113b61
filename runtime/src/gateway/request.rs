//! A caller's request, read as far as money and routing need it, and what of it is replaced before it is sent on.

use std::ops::Range;

use bytes::Bytes;
use orchestra_events::ledger::Quote;

use super::errors::Refusal;
use super::route::Target;
use super::scan::{Field, Object};
use super::{Api, GatewayPolicy};
use crate::model::OUTPUT_FLOOR;
use hyper::StatusCode;

/// The output limit that is asked for when neither the caller nor the price's row names one.
pub(super) const DEFAULT_OUTPUT: u64 = 32_000;

/// The longest value that is put in place of another: a model's name, a limit.
const MAX_SPLICE: usize = 256;

/// New bytes in the place of old ones.
#[derive(Debug, Clone)]
struct Splice {
    at: Range<usize>,
    with: String,
}

/// Where the output limit stands.
#[derive(Debug, Clone)]
enum Limit {
    /// These digits, and what they say.
    Written(Range<usize>, u64),
    /// Nowhere: a field of this name is put in.
    Absent(&'static str),
    /// A field that is `null`.
    Null(Range<usize>),
}

/// A request that may be made, once there is money for it.
#[derive(Debug)]
pub(super) struct Call {
    pub api: Api,
    /// Who is asked, for what price, and with whose key.
    pub target: Target,
    /// Whether the caller wants a stream.
    pub streamed: bool,
    /// Whether the caller of Chat Completions wants the last chunk, with the usage.
    pub wants_usage: bool,
    /// What it can cost.
    pub quote: Quote,
    /// Whether the provider runs tools of its own, and the input can grow.
    pub hosted: bool,
    body: Bytes,
    /// Right after the opening brace.
    inside: usize,
    splices: Vec<Splice>,
    limits: Vec<Limit>,
}

impl Call {
    /// Reads a request.
    pub fn read(
        api: Api,
        body: Bytes,
        find: impl FnOnce(&str) -> Result<Target, Refusal>,
        policy: &GatewayPolicy,
    ) -> Result<Self, Refusal> {
        let text = text(&body)?;
        let object =
            Object::scan(text, 0).map_err(|why| Refusal::bad_request(format!("The body is not understood: {why}.")))?;
        let mut splices = Vec::new();
        let (target, renamed) = model(&object, find)?;
        splices.extend(renamed);
        // A tier other than the standard one has another price; an account's own default may be one.
        let tier = if api.is_anthropic() { "\"standard_only\"" } else { "\"default\"" };
        match object.find("service_tier") {
            Some(field) if field.raw != tier => splices.push(Splice { at: field.at.clone(), with: tier.into() }),
            Some(_) => {}
            None if target.bills_tiers => splices.push(insert(&object, "service_tier", tier)),
            None => {}
        }
        let streamed = flag(&object, "stream")?;
        match object.find("stream") {
            _ if streamed => {}
            Some(field) => splices.push(Splice { at: field.at.clone(), with: "true".into() }),
            None => splices.push(insert(&object, "stream", "true")),
        }
        let mut wants_usage = false;
        if api == Api::Chat {
            let splice;
            (wants_usage, splice) = include_usage(&object)?;
            splices.extend(splice);
        }
        let (limits, wanted) = limits(api, &object, &target)?;
        let bounded =
            super::quote::bound(api, &object, &target, body.len(), wanted, policy).map_err(Refusal::bad_request)?;
        let inside = object.inside;
        drop(object);
        Ok(Self {
            api,
            target,
            streamed,
            wants_usage: wants_usage && streamed,
            quote: bounded.quote,
            hosted: bounded.hosted,
            inside,
            body,
            splices,
            limits,
        })
    }

    /// The bytes to send with this output limit. A limit that is not above it stays as it was written.
    pub fn body(&self, max_output: u64) -> Bytes {
        let limits = self.limits.iter().filter_map(|limit| match limit {
            Limit::Written(_, written) if *written <= max_output => None,
            Limit::Written(at, _) | Limit::Null(at) => Some(Splice { at: at.clone(), with: max_output.to_string() }),
            Limit::Absent(name) => {
                Some(Splice { at: self.inside..self.inside, with: format!("\"{name}\":{max_output},") })
            }
        });
        let mut splices: Vec<Splice> = self.splices.iter().cloned().chain(limits).collect();
        splices.sort_by_key(|splice| splice.at.start);
        let mut sent = Vec::with_capacity(self.body.len() + splices.len() * MAX_SPLICE);
        let mut copied = 0;
        for splice in splices {
            sent.extend_from_slice(&self.body[copied..splice.at.start]);
            sent.extend_from_slice(splice.with.as_bytes());
            copied = splice.at.end;
        }
        sent.extend_from_slice(&self.body[copied..]);
        Bytes::from(sent)
    }
}

/// A request for a count of tokens: who is asked, and what is sent. It costs nothing.
pub(super) fn count_tokens(
    body: &Bytes,
    find: impl FnOnce(&str) -> Result<Target, Refusal>,
) -> Result<(Target, Bytes), Refusal> {
    let text = text(body)?;
    let object =
        Object::scan(text, 0).map_err(|why| Refusal::bad_request(format!("The body is not understood: {why}.")))?;
    let (target, renamed) = model(&object, find)?;
    let sent = match renamed {
        None => body.clone(),
        Some(splice) => {
            let parts = [&body[..splice.at.start], splice.with.as_bytes(), &body[splice.at.end..]];
            Bytes::from(parts.concat())
        }
    };
    Ok((target, sent))
}

fn text(body: &Bytes) -> Result<&str, Refusal> {
    std::str::from_utf8(body).map_err(|_| Refusal::bad_request("The body is not UTF-8; send JSON."))
}

fn model(
    object: &Object<'_>,
    find: impl FnOnce(&str) -> Result<Target, Refusal>,
) -> Result<(Target, Option<Splice>), Refusal> {
    let Some(field) = object.get("model") else {
        return Err(Refusal::bad_request("The body names no model; add \"model\"."));
    };
    let name: String = serde_json::from_str(field.raw)
        .map_err(|_| Refusal::bad_request("\"model\" is not a string; name one model."))?;
    let target = find(&name)?;
    let sent = &target.model.model_id;
    let renamed = (*sent != name)
        .then(|| Splice { at: field.at.clone(), with: serde_json::Value::from(sent.as_str()).to_string() });
    Ok((target, renamed))
}

fn insert(object: &Object<'_>, key: &str, value: &str) -> Splice {
    // There is always another field after it: the model.
    Splice { at: object.inside..object.inside, with: format!("\"{key}\":{value},") }
}

fn flag(object: &Object<'_>, key: &str) -> Result<bool, Refusal> {
    match object.get(key).map(|field| field.raw) {
        None | Some("false") => Ok(false),
        Some("true") => Ok(true),
        Some(_) => Err(Refusal::bad_request(format!("{key:?} is neither true nor false."))),
    }
}

/// Whether the caller wants the usage, and what makes the provider send it.
fn include_usage(object: &Object<'_>) -> Result<(bool, Option<Splice>), Refusal> {
    const ASKED: &str = "{\"include_usage\":true}";
    let Some(field) = object.find("stream_options") else {
        return Ok((false, Some(insert(object, "stream_options", ASKED))));
    };
    if field.is_null() {
        return Ok((false, Some(Splice { at: field.at.clone(), with: ASKED.into() })));
    }
    let wrong = |why: String| Refusal::bad_request(format!("\"stream_options\" is not understood: {why}."));
    let options = Object::scan(field.raw, field.at.start).map_err(wrong)?;
    let wanted = flag(&options, "include_usage")?;
    let splice = match options.find("include_usage") {
        _ if wanted => None,
        Some(field) => Some(Splice { at: field.at.clone(), with: "true".into() }),
        None if options.fields.is_empty() => Some(Splice { at: field.at.clone(), with: ASKED.into() }),
        None => Some(insert(&options, "include_usage", "true")),
    };
    Ok((wanted, splice))
}

/// A whole number, as it is written.
pub(super) fn whole(field: &Field<'_>) -> Result<u64, Refusal> {
    field.raw.parse().map_err(|_| {
        let raw: String = field.raw.chars().take(40).collect();
        Refusal::bad_request(format!("\"{}\" is {raw}, which is not a whole number.", field.key))
    })
}

/// Where the limit stands, and what the caller wants.
fn limits(api: Api, object: &Object<'_>, target: &Target) -> Result<(Vec<Limit>, u64), Refusal> {
    let names: &[&'static str] = match api {
        Api::Messages | Api::CountTokens => &["max_tokens"],
        // Whichever of the two the server believes, it must not be above the limit.
        Api::Chat => &["max_completion_tokens", "max_tokens"],
        Api::Responses => &["max_output_tokens"],
    };
    let most = target.model.price.max_output_tokens();
    let (mut limits, mut null, mut wanted) = (Vec::new(), None, None);
    for name in names {
        match object.find(name) {
            None => {}
            Some(field) if field.is_null() => null = null.or(Some(Limit::Null(field.at.clone()))),
            Some(field) => {
                let tokens = whole(field)?;
                if tokens == 0 {
                    return Err(Refusal::bad_request(format!("{name:?} is 0; ask for at least one token.")));
                }
                wanted = Some(wanted.map_or(tokens, |other: u64| other.max(tokens)));
                limits.push(Limit::Written(field.at.clone(), tokens));
            }
        }
    }
    let wanted = match wanted {
        Some(wanted) => {
            // A server that knows the old name only would write without a limit.
            if api == Api::Chat && !target.renamed && object.get("max_tokens").is_none() {
                let null = object.find("max_tokens").map(|field| Limit::Null(field.at.clone()));
                limits.push(null.unwrap_or(Limit::Absent("max_tokens")));
            }
            wanted
        }
        None => {
            let name = if api == Api::Chat && !target.renamed { "max_tokens" } else { names[0] };
            limits.push(null.unwrap_or(Limit::Absent(name)));
            most.map_or(DEFAULT_OUTPUT, |most| most.min(DEFAULT_OUTPUT))
        }
    };
    Ok((limits, wanted))
}

/// The least output with which a call is worth its input: thinking alone must leave room for an answer.
pub(super) fn least_output(thinking: Option<u64>, wanted: u64) -> u64 {
    match thinking {
        // The caller's own limit is below its own budget: the provider has rules for that.
        Some(budget) if budget < wanted => budget.saturating_add(OUTPUT_FLOOR).min(wanted),
        _ => OUTPUT_FLOOR,
    }
}

/// A path, method or body that is none of ours.
pub(super) fn too_large(limit: usize) -> Refusal {
    Refusal::new(
        StatusCode::PAYLOAD_TOO_LARGE,
        format!("The body is longer than {} MiB; send less of the conversation.", limit >> 20),
    )
}
