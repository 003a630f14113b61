//! The request for a key, read with every fault named at its place.

use ipnet::IpNet;
use jiff::Timestamp;
use orchestra_events::key::bounds::{MAX_ENTRIES, MAX_PATTERN};
use orchestra_events::key::{Bounds, KeyLimits, Pattern, Scope};

use super::fields::{Faults, Object, nearest, step};
use super::rules;
use crate::auth::Caller;
use crate::auth::issuing::{KeyError, NewKey, is_environment};

/// Longest name of a key, in bytes.
pub const MAX_NAME: usize = 100;
/// The environment in the prefix of a key whose request names none.
pub const ENVIRONMENT: &str = "live";
/// The largest limit that a key can have.
const MAX_LIMIT: u64 = 1_000_000_000;

fn name(text: &str) -> Result<(), String> {
    let fits = (1..=MAX_NAME).contains(&text.len()) && !text.trim().is_empty() && !text.chars().any(char::is_control);
    if fits { Ok(()) } else { Err(format!("expected 1 to {MAX_NAME} bytes, without control characters")) }
}

fn texts(object: &mut Object, name: &'static str, most: usize, faults: &mut Faults) -> Vec<String> {
    let Some(raw) = object.take(name, faults) else { return Vec::new() };
    match serde_json::from_str::<Vec<String>>(raw.get()) {
        Ok(texts) if texts.len() <= most => texts,
        Ok(_) | Err(_) => {
            faults.add(object.at(name), format!("expected a list of at most {most} texts"));
            Vec::new()
        }
    }
}

/// A list of texts that pass a rule, each once.
fn listed<T: PartialEq>(
    object: &mut Object,
    name: &'static str,
    faults: &mut Faults,
    rule: impl Fn(String) -> Result<T, String>,
) -> Vec<T> {
    let at = object.at(name);
    let mut found = Vec::new();
    for (place, text) in texts(object, name, MAX_ENTRIES, faults).into_iter().enumerate() {
        match rule(text) {
            Ok(entry) if found.contains(&entry) => {}
            Ok(entry) => found.push(entry),
            Err(detail) => faults.add(step(&at, &place.to_string()), detail),
        }
    }
    found
}

fn named(text: String) -> Result<String, String> {
    rules::name(&text).map(|()| text)
}

fn repo_pattern(text: String) -> Result<Pattern, String> {
    if text != "*" && !text.contains(':') {
        return Err("expected a pattern of forge:owner/name, such as github:acme/*".to_owned());
    }
    Pattern::try_from(text).map_err(|error| error.to_string())
}

fn network(text: String) -> Result<IpNet, String> {
    let host = || text.parse::<std::net::IpAddr>().map(IpNet::from);
    let parsed = text.parse::<IpNet>().or_else(|_| host());
    parsed.map(|network| network.trunc()).map_err(|_| "expected a network such as 10.0.0.0/8, or an address".to_owned())
}

fn bounds(body: &mut Object, faults: &mut Faults) -> Bounds {
    let Some(mut given) = body.object("bounds", faults) else { return Bounds::default() };
    let bounds = Bounds {
        projects: listed(&mut given, "projects", faults, named),
        environments: listed(&mut given, "environments", faults, named),
        task_types: listed(&mut given, "taskTypes", faults, named),
        repos: listed(&mut given, "repos", faults, repo_pattern),
        models: listed(&mut given, "models", faults, |text| Pattern::try_from(text).map_err(|error| error.to_string())),
        networks: listed(&mut given, "networks", faults, network),
    };
    given.finish(faults);
    bounds
}

fn limits(body: &mut Object, faults: &mut Faults) -> KeyLimits {
    let Some(mut given) = body.object("limits", faults) else { return KeyLimits::default() };
    let mut limit = |name: &'static str| {
        given.whole(name, 1, MAX_LIMIT, faults).map(|limit| u32::try_from(limit).unwrap_or(u32::MAX))
    };
    let limits = KeyLimits {
        requests_per_minute: limit("requestsPerMinute"),
        burst: limit("burst"),
        concurrent_tasks: limit("concurrentTasks"),
    };
    given.finish(faults);
    limits
}

/// The scopes that these names stand for; `campaigns:*` for all that begin so.
fn scopes(body: &mut Object, faults: &mut Faults) -> Vec<Scope> {
    let at = body.at("scopes");
    let before = faults.count();
    let mut found = Vec::new();
    for (place, text) in texts(body, "scopes", Scope::ALL.len(), faults).into_iter().enumerate() {
        let family = text.strip_suffix('*').filter(|family| family.ends_with(':'));
        let meant = |scope: &&Scope| match family {
            Some(family) => scope.as_str().starts_with(family),
            None => scope.as_str() == text,
        };
        let scopes: Vec<_> = Scope::ALL.iter().filter(meant).copied().collect();
        if scopes.is_empty() {
            let detail = match nearest(&text, Scope::ALL.iter().map(|scope| scope.as_str())) {
                Some(known) => format!("is no scope; did you mean `{known}`?"),
                None => "is no scope; `tasks:read` is one, and `tasks:*` is all that begin so".to_owned(),
            };
            faults.add(step(&at, &place.to_string()), detail);
        }
        found.extend(scopes);
    }
    found.sort_unstable();
    found.dedup();
    if found.is_empty() && faults.count() == before {
        faults.add(at, "expected at least one scope");
    }
    found
}

/// The key that a request describes: what it leaves out is as the caller's own.
pub fn new_key(mut body: Object, caller: &Caller, now: Timestamp, faults: &mut Faults) -> NewKey {
    let own_name = body.text("name", name, faults);
    if own_name.is_none() && faults.count() == 0 {
        faults.add(body.at("name"), "is required: what you call the key");
    }
    let environment = body.text(
        "environment",
        |text| if is_environment(text) { Ok(()) } else { Err(KeyError::Environment.to_string()) },
        faults,
    );
    let scopes = scopes(&mut body, faults);
    let before = faults.count();
    let team = body.text("team", rules::name, faults).or_else(|| caller.team.clone());
    let team_read = faults.count() == before;
    let ends = body.text(
        "expiresAt",
        |text| match text.parse::<Timestamp>() {
            Ok(time) if time > now => Ok(()),
            Ok(_) => Err("lies in the past".to_owned()),
            Err(_) => Err("expected a time such as 2027-01-31T00:00:00Z".to_owned()),
        },
        faults,
    );
    let new = NewKey {
        name: own_name.unwrap_or_default(),
        team,
        environment: environment.unwrap_or_else(|| ENVIRONMENT.to_owned()),
        bounds: bounds(&mut body, faults).or(&caller.bounds),
        expires_at: ends.and_then(|text| text.parse().ok()).or(caller.ends),
        limits: limits(&mut body, faults).or(&caller.limits),
        scopes,
    };
    if team_read && new.team.is_none() && !new.scopes.contains(&Scope::Admin) {
        faults.add(body.at("team"), "is required: a key without a team is an operator's, with the scope `admin`");
    }
    body.finish(faults);
    new
}

// What is described and not built is in `openapi.rs`; this keeps its figures true.
const _: () = assert!(MAX_ENTRIES == 64 && MAX_PATTERN == 400 && MAX_NAME == 100);
