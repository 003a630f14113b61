//! The payloads of tasks and campaigns: what is taken is within its bounds, and written down again it is the same request.

use std::sync::OnceLock;

use actix_web::web::Bytes;
use orchestra_actors::campaign::service::NewCampaign;
use orchestra_actors::{NewRepo, NewTask};
use orchestra_events::KeyId;
use orchestra_events::campaign::event::{MAX_CONCURRENCY, MAX_NAME as MAX_CAMPAIGN_NAME, MAX_REPOS as MAX_TARGETS};
use orchestra_events::key::Scope;
use orchestra_events::task::event::{Budget, Harness, MAX_ATTEMPTS, MAX_REPOS, MAX_TASK_TEXT, MAX_TIMEOUT};
use orchestra_web::api::body::MAX_BODY;
use orchestra_web::api::fields::MAX_FAULTS;
use orchestra_web::api::payload::{self, MAX_EGRESS_HOSTS, MAX_METADATA_BYTES, MAX_METADATA_ENTRIES, MAX_PEOPLE};
use orchestra_web::api::{campaign_payload, fields, rules};
use orchestra_web::auth::{Caller, Who};
use orchestra_web::problem::Problem;
use secrecy::ExposeSecret;
use serde_json::{Map, Value, json};
use uuid::Uuid;

/// What a secret in an input begins with, so that it is known again in an answer.
const MARK: &str = "sk-fuzz-";

fn callers() -> &'static [Caller; 2] {
    static CALLERS: OnceLock<[Caller; 2]> = OnceLock::new();
    CALLERS.get_or_init(|| {
        let named = |name: &str| Caller::named(Who::Key(KeyId::from_uuid(Uuid::max())), name);
        let ordinary = Caller { team: Some("platform".to_owned()), ..named("ordinary") };
        [ordinary, Caller { scopes: vec![Scope::Admin], ..named("admin") }]
    })
}

/// Reads a body of `POST /v1/tasks`, and of `POST /v1/campaigns`.
pub fn payload(input: &[u8]) {
    if input.len() > MAX_BODY {
        return;
    }
    let Ok(raw) = fields::json(&Bytes::copy_from_slice(input)) else { return };
    for caller in callers() {
        match payload::new_task(&raw, caller) {
            Ok(task) => {
                check_task(&task, caller);
                let again = task_text(&task);
                let read = fields::json(&again.clone().into()).expect("what was written is JSON");
                let read = payload::new_task(&read, caller).unwrap_or_else(|problem| panic!("{again}: {problem:?}"));
                assert_eq!(payload::request_hash(&read), payload::request_hash(&task), "{again}");
                assert_eq!(secrets(&read), secrets(&task));
            }
            Err(problem) => check_problem(&problem, input),
        }
        match campaign_payload::new_campaign(&raw, caller) {
            Ok(campaign) => {
                check_campaign(&campaign, caller);
                let again = campaign_text(&campaign);
                let read = fields::json(&again.clone().into()).expect("what was written is JSON");
                let read = campaign_payload::new_campaign(&read, caller)
                    .unwrap_or_else(|problem| panic!("{again}: {problem:?}"));
                let hash = campaign_payload::request_hash;
                assert_eq!(hash(&read), hash(&campaign), "{again}");
            }
            Err(problem) => check_problem(&problem, input),
        }
    }
}

/// A refusal lists no more than it may, and repeats no secret.
fn check_problem(problem: &Problem, input: &[u8]) {
    assert!(problem.code.status().as_u16() < 500, "the caller's own fault: {problem:?}");
    assert!(problem.errors.len() <= MAX_FAULTS);
    let Ok(body) = serde_json::from_slice::<Value>(input) else { return };
    for pointer in ["/credentials/model/apiKey", "/credentials/git/token"] {
        let Some(secret) = body.pointer(pointer).and_then(Value::as_str).filter(|text| text.starts_with(MARK)) else {
            continue;
        };
        let places = body.to_string().matches(secret).count();
        assert!(places > 1 || !format!("{problem:?}").contains(secret), "a secret is repeated: {problem:?}");
    }
}

fn check_text(text: &str, most: usize) {
    assert!((1..=most).contains(&text.len()) && !text.chars().any(char::is_control), "{text:?}");
}

fn check_repos(repos: &[NewRepo], most: usize) {
    assert!((1..=most).contains(&repos.len()));
    for repo in repos {
        check_text(&repo.repo, 400);
        for branch in [&repo.base, &repo.branch].into_iter().flatten() {
            check_text(branch, rules::MAX_BRANCH);
            assert!(git2::Reference::is_valid_name(&format!("refs/heads/{branch}")), "{branch:?}");
        }
    }
}

fn check_task(task: &NewTask, caller: &Caller) {
    check_repos(&task.repos, MAX_REPOS);
    assert!(caller.sees(&task.team));
    assert!(!task.task.trim().is_empty() && task.task.len() <= MAX_TASK_TEXT);
    assert!(!task.task.chars().any(|letter| letter.is_control() && !matches!(letter, '\n' | '\r' | '\t')));
    check_text(&task.model, rules::MAX_MODEL);
    for name in [Some(&task.team), task.project.as_ref(), task.environment.as_ref(), task.task_type.as_ref()] {
        name.inspect(|name| check_text(name, rules::MAX_NAME));
    }
    task.customer.iter().for_each(|name| check_text(name, rules::MAX_CUSTOMER));
    task.image.iter().for_each(|name| check_text(name, rules::MAX_MODEL));
    assert_eq!(task.harness == Harness::Command, !task.command.is_empty());
    assert!(task.command.iter().all(|word| !word.contains('\0') && word.len() <= payload::MAX_COMMAND_WORD));
    assert!(task.command.len() <= payload::MAX_COMMAND_WORDS);
    assert!(task.timeout_seconds.is_none_or(|seconds| (1..=MAX_TIMEOUT.as_secs()).contains(&seconds)));
    assert!(task.retry.is_none_or(|retry| (1..=MAX_ATTEMPTS).contains(&retry.most)));
    assert!(task.metadata.len() <= MAX_METADATA_ENTRIES);
    // Written without the spaces and escapes of the request, it is no longer than that was.
    assert!(task.metadata.values().all(|value| !value.is_array() && !value.is_object()));
    let bytes: usize = task.metadata.iter().filter_map(|(name, value)| Some(name.len() + value.as_str()?.len())).sum();
    assert!(bytes <= MAX_METADATA_BYTES);
    if let Some(hosts) = &task.egress {
        assert!(hosts.len() <= MAX_EGRESS_HOSTS);
        hosts.iter().for_each(|host| check_text(host, payload::MAX_EGRESS_HOST));
    }
    if let Some(wish) = &task.pull_request {
        wish.title.iter().for_each(|title| check_text(title, payload::MAX_TITLE));
        assert!(wish.body.as_ref().is_none_or(|body| body.len() <= payload::MAX_PULL_REQUEST_BODY));
        for people in [&wish.reviewers, &wish.labels] {
            assert!(people.len() <= MAX_PEOPLE);
            people.iter().for_each(|name| check_text(name, payload::MAX_PERSON));
        }
    }
    check_budget(&task.budget);
    for secret in secrets(task).into_iter().flatten() {
        assert!(secret.len() <= rules::MAX_SECRET && secret.bytes().all(|byte| byte.is_ascii_graphic()));
        assert!(secret.len() < MARK.len() || !format!("{task:?}").contains(&secret), "a secret is formatted");
    }
}

fn check_budget(budget: &Budget) {
    assert!(budget.max_nano_usd.is_none_or(|amount| amount.nanos() > 0));
    assert!(budget.max_tokens.is_none_or(|tokens| (1..=payload::MAX_BUDGET_TOKENS).contains(&tokens)));
}

fn check_campaign(campaign: &NewCampaign, caller: &Caller) {
    check_text(&campaign.name, MAX_CAMPAIGN_NAME);
    check_repos(&campaign.repos, MAX_TARGETS);
    check_task(&campaign.task, caller);
    check_budget(&campaign.budget);
    assert!((1..=MAX_CONCURRENCY).contains(&campaign.limits.concurrency));
    assert!(campaign.limits.stop_after_failures.is_none_or(|failures| failures > 0));
}

fn secrets(task: &NewTask) -> [Option<String>; 2] {
    [&task.credentials.model, &task.credentials.git].map(|secret| Some(secret.as_ref()?.expose_secret().to_owned()))
}

fn repos(repos: &[NewRepo]) -> Value {
    repos.iter().map(|repo| json!({"repo": repo.repo, "base": repo.base, "branch": repo.branch})).collect()
}

/// A budget keeps its amount to the last digit only as text.
fn budget(budget: &Budget) -> String {
    let mut members = Vec::new();
    members.extend(budget.max_nano_usd.map(|amount| format!("\"maxUsd\":{amount}")));
    members.extend(budget.max_tokens.map(|tokens| format!("\"maxTokens\":{tokens}")));
    format!("{{{}}}", members.join(","))
}

/// The members that a task's payload and a campaign's have in common.
fn members(task: &NewTask) -> Map<String, Value> {
    let [model, git] = secrets(task);
    let mut credentials = Map::new();
    credentials.extend(model.map(|key| ("model".to_owned(), json!({"apiKey": key}))));
    credentials.extend(git.map(|token| ("git".to_owned(), json!({"token": token}))));
    let whole = json!({
        "task": task.task,
        "model": task.model,
        "harness": task.harness.as_str(),
        "command": Some(&task.command).filter(|words| !words.is_empty()),
        "team": task.team,
        "project": task.project,
        "environment": task.environment,
        "taskType": task.task_type,
        "customer": task.customer,
        "pullRequest": task.pull_request,
        "image": task.image,
        "egress": task.egress,
        "timeoutSeconds": task.timeout_seconds,
        "retry": task.retry.map(|retry| json!({"attempts": retry.most, "workspace": retry.workspace.as_str()})),
        "metadata": task.metadata,
        "credentials": credentials,
    });
    let Value::Object(whole) = whole else { unreachable!("written as an object") };
    whole
}

fn text(members: Map<String, Value>, budgets: &[(&str, &Budget)]) -> String {
    let mut text = Value::Object(members).to_string();
    text.pop();
    for (name, amounts) in budgets {
        text.push_str(&format!(",\"{name}\":{}", budget(amounts)));
    }
    text.push('}');
    text
}

fn task_text(task: &NewTask) -> String {
    let mut whole = members(task);
    whole.insert("repos".to_owned(), repos(&task.repos));
    text(whole, &[("budget", &task.budget)])
}

fn campaign_text(campaign: &NewCampaign) -> String {
    let mut whole = members(&campaign.task);
    whole.insert("name".to_owned(), json!(campaign.name));
    whole.insert("repos".to_owned(), repos(&campaign.repos));
    whole.insert("concurrency".to_owned(), json!(campaign.limits.concurrency));
    whole.insert("pullRequestsPerHour".to_owned(), json!(campaign.limits.pull_requests_per_hour));
    whole.insert("stopAfterFailures".to_owned(), json!(campaign.limits.stop_after_failures));
    text(whole, &[("budget", &campaign.budget), ("taskBudget", &campaign.task.budget)])
}
