//! The task payload: every field read exactly, every fault with its pointer, nothing passed over in silence.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::sync::Arc;

use orchestra_actors::{Credentials, NewRepo, NewTask};
use orchestra_events::NanoUsd;
use orchestra_events::task::event::{
    Attempts, Budget, Harness, MAX_ATTEMPTS, MAX_REPOS, MAX_TIMEOUT, PullRequestWish, Workspace,
};
use secrecy::SecretString;
use serde_json::value::RawValue;
use serde_json::{Map, Value, json};
use sha2::{Digest, Sha256};

use super::fields::{Faults, Object, nearest, step};
use super::rules;
use crate::auth::Caller;
use crate::problem::{Code, Field, Problem};

/// Most entries of `metadata`.
pub const MAX_METADATA_ENTRIES: usize = 50;
/// Longest name of an entry of `metadata`, in bytes.
pub const MAX_METADATA_NAME: usize = 100;
/// Most bytes of `metadata` as JSON: it travels with every event page and every list.
pub const MAX_METADATA_BYTES: usize = 8 * 1024;
/// The largest cap on tokens; more than any task can use.
pub const MAX_BUDGET_TOKENS: u64 = 1_000_000_000_000;
/// Most words of a command.
pub const MAX_COMMAND_WORDS: usize = 64;
/// Longest word of a command, in bytes.
pub const MAX_COMMAND_WORD: usize = 8 * 1024;
/// Most hosts that a task asks for.
pub const MAX_EGRESS_HOSTS: usize = 100;
/// Longest pattern of hosts, in bytes: a name, a star and a port.
pub const MAX_EGRESS_HOST: usize = 253 + 2 + 6;
/// Longest title of a pull request, in bytes.
pub const MAX_TITLE: usize = 250;
/// Longest text of a pull request, in bytes; GitHub takes 65,536 characters.
pub const MAX_PULL_REQUEST_BODY: usize = 32 * 1024;
/// Most reviewers of a pull request, and most labels.
pub const MAX_PEOPLE: usize = 20;
/// Longest name of a reviewer or a label, in bytes.
pub const MAX_PERSON: usize = 100;

/// What something may cost.
pub(super) fn budget(body: &mut Object, faults: &mut Faults) -> Budget {
    let Some(mut object) = body.object("budget", faults) else { return Budget::default() };
    let max_nano_usd = object.take("maxUsd", faults).and_then(|raw| match NanoUsd::parse_decimal(raw.get()) {
        Ok(amount) if amount > NanoUsd::ZERO => Some(amount),
        Ok(_) => {
            faults.add("/budget/maxUsd", "expected more than 0");
            None
        }
        Err(error) => {
            faults.add("/budget/maxUsd", error.to_string());
            None
        }
    });
    let max_tokens = object.whole("maxTokens", 1, MAX_BUDGET_TOKENS, faults);
    object.finish(faults);
    Budget { max_nano_usd, max_tokens }
}

fn harness(body: &mut Object, faults: &mut Faults) -> Harness {
    let named = |text: &str| Harness::ALL.into_iter().find(|harness| harness.as_str() == text);
    let verdict = |text: &str| match named(text) {
        Some(_) => Ok(()),
        None => Err(match nearest(text, Harness::ALL.map(Harness::as_str)) {
            Some(known) => format!("no such harness; did you mean `{known}`?"),
            None => format!("no such harness; there are {}", Harness::ALL.map(Harness::as_str).join(", ")),
        }),
    };
    body.text("harness", verdict, faults).and_then(|text| named(&text)).unwrap_or(Harness::Builtin)
}

/// Program and arguments of the harness `command`; nobody else has any.
fn command(body: &mut Object, harness: Harness, faults: &mut Faults) -> Vec<String> {
    let pointer = step("", "command");
    let Some(raw) = body.take("command", faults) else {
        if harness == Harness::Command {
            faults.add(pointer, "is required with the harness `command`: the program and its arguments, as a list");
        }
        return Vec::new();
    };
    if harness != Harness::Command {
        faults.add(pointer, "goes with the harness `command` alone; leave it out");
        return Vec::new();
    }
    let words: Vec<String> = serde_json::from_str(raw.get()).unwrap_or_default();
    let fits = |word: &String| word.len() <= MAX_COMMAND_WORD && !word.contains('\0');
    if words.is_empty() || words.len() > MAX_COMMAND_WORDS || words[0].is_empty() || !words.iter().all(fits) {
        faults.add(
            pointer,
            format!("expected 1 to {MAX_COMMAND_WORDS} texts of at most {MAX_COMMAND_WORD} bytes, the program first"),
        );
    }
    words
}

/// How often a task is attempted by itself.
fn retry(body: &mut Object, faults: &mut Faults) -> Option<Attempts> {
    let mut object = body.object("retry", faults)?;
    let most = object.whole("attempts", 1, MAX_ATTEMPTS.into(), faults);
    let named = |text: &str| Workspace::ALL.into_iter().find(|workspace| workspace.as_str() == text);
    let rule = |text: &str| named(text).map(|_| ()).ok_or_else(|| "expected fresh or same".to_owned());
    let workspace = object.text("workspace", rule, faults).and_then(|text| named(&text)).unwrap_or(Workspace::Fresh);
    object.finish(faults);
    Some(Attempts { most: most.and_then(|most| u32::try_from(most).ok()).unwrap_or(1), workspace })
}

/// A repository: its name alone, or an object with its branches.
fn one_repo(raw: &RawValue, pointer: &str, faults: &mut Faults) -> NewRepo {
    let mut repo = NewRepo { pointer: pointer.to_owned(), within: pointer.to_owned(), ..NewRepo::default() };
    if let Ok(name) = serde_json::from_str::<String>(raw.get()) {
        if let Err(detail) = rules::repo(&name) {
            faults.add(pointer, detail);
        }
        repo.repo = name;
        return repo;
    }
    let Some(mut object) = Object::read(raw, pointer, faults) else { return repo };
    repo.pointer = object.at("repo");
    let before = faults.count();
    match object.text("repo", rules::repo, faults) {
        Some(name) => repo.repo = name,
        None if faults.count() == before => faults.add(repo.pointer.clone(), "is required here"),
        None => {}
    }
    repo.base = object.text("base", rules::branch, faults);
    repo.branch = object.text("branch", rules::branch, faults);
    object.finish(faults);
    repo
}

/// A list of repositories, each with the branches of the request where it has none of its own.
pub(super) fn listed_repos(
    raw: &RawValue,
    pointer: &str,
    most: usize,
    (base, branch): (Option<String>, Option<String>),
    faults: &mut Faults,
) -> Vec<NewRepo> {
    let items: Vec<Box<RawValue>> = serde_json::from_str(raw.get()).unwrap_or_default();
    if items.is_empty() || items.len() > most {
        faults.add(pointer, format!("expected a list of 1 to {most} repositories"));
        return Vec::new();
    }
    let read = |(place, item): (usize, Box<RawValue>)| {
        let mut repo = one_repo(&item, &step(pointer, &place.to_string()), faults);
        let within = |own: &Option<String>, shared: &Option<String>| own.clone().or_else(|| shared.clone());
        repo.base = within(&repo.base, &base);
        repo.branch = within(&repo.branch, &branch);
        repo
    };
    items.into_iter().enumerate().map(read).collect()
}

/// Where the work is done: `repo`, or `repos` for several.
fn repos(body: &mut Object, faults: &mut Faults) -> Vec<NewRepo> {
    let base = body.text("base", rules::branch, faults);
    let branch = body.text("branch", rules::branch, faults);
    let before = faults.count();
    let repo = body.text("repo", rules::repo, faults);
    match (repo, body.take("repos", faults)) {
        (Some(repo), None) => {
            vec![NewRepo { repo, base, branch, pointer: step("", "repo"), within: String::new() }]
        }
        (None, Some(list)) => listed_repos(&list, &step("", "repos"), MAX_REPOS, (base, branch), faults),
        (Some(_), Some(_)) => {
            faults.add("/repos", "goes without `repo`: name every repository in the list");
            Vec::new()
        }
        (None, None) => {
            if faults.count() == before {
                faults.add("/repo", "is required: owner/name, forge:owner/name or a URL; or a list of them as `repos`");
            }
            Vec::new()
        }
    }
}

/// A short list of names.
fn names(object: &mut Object, name: &'static str, faults: &mut Faults) -> Vec<String> {
    let Some(raw) = object.take(name, faults) else { return Vec::new() };
    let found: Option<Vec<String>> = serde_json::from_str(raw.get()).ok();
    let fits =
        |name: &String| !name.trim().is_empty() && name.len() <= MAX_PERSON && !name.chars().any(char::is_control);
    match found.filter(|names| names.len() <= MAX_PEOPLE && names.iter().all(fits)) {
        Some(names) => names,
        None => {
            let detail = format!("expected at most {MAX_PEOPLE} texts of 1 to {MAX_PERSON} bytes on one line each");
            faults.add(object.at(name), detail);
            Vec::new()
        }
    }
}

/// The hosts that the sandbox may connect to. An empty list is a wish too: none.
fn egress(body: &mut Object, faults: &mut Faults) -> Option<Vec<String>> {
    let raw = body.take("egress", faults)?;
    let found: Option<Vec<String>> = serde_json::from_str(raw.get()).ok();
    let fits = |host: &String| !host.is_empty() && host.len() <= MAX_EGRESS_HOST && !host.chars().any(char::is_control);
    let read = found.filter(|hosts| hosts.len() <= MAX_EGRESS_HOSTS && hosts.iter().all(fits));
    if read.is_none() {
        let detail = format!("expected at most {MAX_EGRESS_HOSTS} hosts as texts of 1 to {MAX_EGRESS_HOST} bytes");
        faults.add(step("", "egress"), detail);
    }
    read
}

/// What the pull requests are to be like.
pub(super) fn pull_request(body: &mut Object, faults: &mut Faults) -> Option<PullRequestWish> {
    let mut object = body.object("pullRequest", faults)?;
    let wish = PullRequestWish {
        title: object.text("title", rules::title, faults),
        body: object.text("body", rules::pull_request_body, faults),
        draft: match object.take("draft", faults).map(|raw| serde_json::from_str::<bool>(raw.get())) {
            None => false,
            Some(Ok(draft)) => draft,
            Some(Err(_)) => {
                faults.add(object.at("draft"), "expected true or false");
                false
            }
        },
        reviewers: names(&mut object, "reviewers", faults),
        labels: names(&mut object, "labels", faults),
    };
    object.finish(faults);
    Some(wish)
}

fn metadata(body: &mut Object, faults: &mut Faults) -> Map<String, Value> {
    let mut map = Map::new();
    let Some(mut object) = body.object("metadata", faults) else { return map };
    let entries = object.rest();
    if entries.len() > MAX_METADATA_ENTRIES {
        faults.add("/metadata", format!("at most {MAX_METADATA_ENTRIES} entries"));
        return map;
    }
    if entries.iter().map(|(name, value)| name.len() + value.get().len()).sum::<usize>() > MAX_METADATA_BYTES {
        faults.add("/metadata", format!("at most {MAX_METADATA_BYTES} bytes in all"));
        return map;
    }
    for (name, raw) in entries {
        let pointer = step("/metadata", &name);
        if name.is_empty() || name.len() > MAX_METADATA_NAME || name.chars().any(char::is_control) {
            faults.add(pointer, format!("a name has 1 to {MAX_METADATA_NAME} bytes and no control characters"));
            continue;
        }
        match serde_json::from_str::<Value>(raw.get()) {
            Ok(value @ (Value::String(_) | Value::Number(_) | Value::Bool(_) | Value::Null)) => {
                if map.insert(name, value).is_some() {
                    faults.add(pointer, "comes twice; say it once");
                }
            }
            Ok(Value::Array(_) | Value::Object(_)) | Err(_) => {
                faults.add(pointer, "expected a text, a number, true, false or null");
            }
        }
    }
    map
}

fn secret(body: &mut Object, of: &'static str, name: &'static str, faults: &mut Faults) -> Option<SecretString> {
    let mut object = body.object(of, faults)?;
    let before = faults.count();
    let found = object.text(name, rules::secret, faults).map(SecretString::from);
    if found.is_none() && faults.count() == before {
        let pointer = object.at(name);
        faults.add(pointer, "is required here");
    }
    object.finish(faults);
    found
}

/// The `credentials` object, wherever it stands.
pub fn credentials(mut object: Object, faults: &mut Faults) -> Credentials {
    let model = secret(&mut object, "model", "apiKey", faults);
    let git = secret(&mut object, "git", "token", faults);
    object.finish(faults);
    Credentials { model, git }
}

/// A text that must be there. One that is there and wrong is one fault, not two.
fn required(
    body: &mut Object,
    name: &'static str,
    rule: fn(&str) -> Result<(), String>,
    faults: &mut Faults,
    missing: &str,
) -> String {
    let before = faults.count();
    let found = body.text(name, rule, faults);
    if found.is_none() && faults.count() == before {
        faults.add(step("", name), missing);
    }
    found.unwrap_or_default()
}

/// Reads the payload of `POST /v1/tasks`. The caller's own team stands in for a missing one.
pub fn new_task(raw: &RawValue, caller: &Caller) -> Result<NewTask, Problem> {
    let mut faults = Faults::default();
    let Some(mut body) = Object::read(raw, "", &mut faults) else {
        faults.none()?;
        return Err(Problem::internal("an object without faults is missing"));
    };
    let repos = repos(&mut body, &mut faults);
    let task = required(&mut body, "task", rules::task, &mut faults, "is required: say what is to be done");
    let model = required(&mut body, "model", rules::graphic, &mut faults, "is required: the name of a model");
    let team = match (&caller.team, caller.is_admin()) {
        (Some(own), false) => body.text("team", rules::name, &mut faults).unwrap_or_else(|| own.clone()),
        (None, _) | (_, true) => {
            required(&mut body, "team", rules::name, &mut faults, "is required: whose task is it?")
        }
    };
    let harness = harness(&mut body, &mut faults);
    let new = NewTask {
        repos,
        task,
        model,
        harness,
        command: command(&mut body, harness, &mut faults),
        project: body.text("project", rules::name, &mut faults),
        environment: body.text("environment", rules::name, &mut faults),
        task_type: body.text("taskType", rules::name, &mut faults),
        customer: body.text("customer", rules::customer, &mut faults),
        budget: budget(&mut body, &mut faults),
        pull_request: pull_request(&mut body, &mut faults),
        image: body.text("image", rules::graphic, &mut faults),
        egress: egress(&mut body, &mut faults),
        timeout_seconds: body.whole("timeoutSeconds", 1, MAX_TIMEOUT.as_secs(), &mut faults),
        retry: retry(&mut body, &mut faults),
        metadata: metadata(&mut body, &mut faults),
        credentials: match body.object("credentials", &mut faults) {
            Some(object) => credentials(object, &mut faults),
            None => Credentials::default(),
        },
        team,
        bounds: Arc::clone(&caller.bounds),
        idempotency: None,
    };
    body.finish(&mut faults);
    faults.none()?;
    if !caller.sees(&new.team) {
        let own = caller.team.as_deref().unwrap_or("none");
        let detail = format!("The key belongs to the team `{own}` and submits tasks only for it. Use that team's key.");
        let errors = vec![Field { pointer: "/team".to_owned(), detail: "not the team of this key".to_owned() }];
        return Err(Problem { errors, ..Problem::new(Code::Forbidden, detail) });
    }
    Ok(new)
}

/// The SHA-256 of what was asked for, secrets left out: two texts of the same request have the same hash.
pub fn request_hash(new: &NewTask) -> String {
    let metadata: BTreeMap<_, _> = new.metadata.iter().collect();
    let repos: Vec<_> = new.repos.iter().map(|repo| (&repo.repo, &repo.base, &repo.branch)).collect();
    let canonical = json!([
        repos,
        new.task,
        new.model,
        new.harness,
        new.command,
        new.team,
        new.project,
        new.environment,
        new.task_type,
        new.customer,
        new.budget,
        new.pull_request,
        new.image,
        new.egress,
        new.timeout_seconds,
        new.retry,
        metadata,
    ]);
    Sha256::digest(canonical.to_string().as_bytes()).iter().fold(String::with_capacity(64), |mut text, byte| {
        // Writing to a String does not fail.
        let _ = write!(text, "{byte:02x}");
        text
    })
}
