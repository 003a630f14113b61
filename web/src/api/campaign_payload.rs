//! The campaign payload: that of a task, with `repos` for `repo`, and what holds the tasks together.

use std::collections::BTreeMap;

use orchestra_actors::campaign::service::NewCampaign;
use orchestra_actors::{NewRepo, NewTask};
use orchestra_events::campaign::Limits;
use orchestra_events::campaign::event::{
    DEFAULT_CONCURRENCY, MAX_CONCURRENCY, MAX_NAME, MAX_PULL_REQUESTS_PER_HOUR, MAX_REPOS,
};
use serde_json::json;
use serde_json::value::{RawValue, to_raw_value};
use sha2::{Digest, Sha256};

use super::fields::{Faults, Object, nearest, step};
use super::{payload, rules};
use crate::auth::Caller;
use crate::problem::Problem;

/// The members that a campaign has and a task has not, and the one that means something else there.
const OWN: [&str; 7] =
    ["name", "repos", "budget", "taskBudget", "concurrency", "pullRequestsPerHour", "stopAfterFailures"];

fn name(text: &str) -> Result<(), String> {
    if text.trim().is_empty() || text.len() > MAX_NAME || text.chars().any(char::is_control) {
        return Err(format!("expected 1 to {MAX_NAME} bytes without line breaks"));
    }
    Ok(())
}

fn repos(body: &mut Object, faults: &mut Faults) -> Vec<NewRepo> {
    match body.take("repos", faults) {
        Some(list) => payload::listed_repos(&list, "/repos", MAX_REPOS, (None, None), faults),
        None => {
            faults.add("/repos", "is required: the repositories, as a list");
            Vec::new()
        }
    }
}

/// What the request says of all its repositories holds for those that say nothing of their own.
fn with_shared(mut repos: Vec<NewRepo>, task: &mut NewTask) -> Vec<NewRepo> {
    let shared = std::mem::take(&mut task.repos).into_iter().next().unwrap_or_default();
    for repo in &mut repos {
        repo.base = repo.base.take().or_else(|| shared.base.clone());
        repo.branch = repo.branch.take().or_else(|| shared.branch.clone());
    }
    task.repos.extend(repos.first().cloned());
    repos
}

/// A count of failed tasks, or the part of all repositories that has failed.
fn stop_after(body: &mut Object, repos: usize, faults: &mut Faults) -> Option<u32> {
    let raw = body.take("stopAfterFailures", faults)?;
    let most = u32::try_from(repos.max(1)).unwrap_or(u32::MAX);
    let count = match (serde_json::from_str::<u32>(raw.get()), serde_json::from_str::<f64>(raw.get())) {
        (Ok(count), _) if count >= 1 => Some(count),
        // Rounded up: a tenth of 15 repositories is 2 of them.
        (Err(_), Ok(part)) if part > 0.0 && part < 1.0 => {
            (1..=most).find(|count| f64::from(*count) >= part * f64::from(most))
        }
        _ => None,
    };
    if count.is_none() {
        let detail = "expected a number of failed tasks from 1 on, or a part of all of them such as 0.1";
        faults.add("/stopAfterFailures", detail);
    }
    count
}

/// Reads the rest as the payload of a task on the first repository; its faults are this payload's.
fn task(
    mut members: BTreeMap<String, Box<RawValue>>,
    first: Option<&NewRepo>,
    caller: &Caller,
    faults: &mut Faults,
) -> Result<Option<NewTask>, Problem> {
    let internal = |error: serde_json::Error| Problem::internal(error);
    // A campaign without a repository has been told so.
    let repo = first.map(|first| first.repo.as_str()).filter(|repo| rules::repo(repo).is_ok()).unwrap_or("owner/name");
    let had_repo = members.insert("repo".to_owned(), to_raw_value(repo).map_err(internal)?).is_some();
    if had_repo {
        faults.add("/repo", "is not known here; did you mean `repos`?");
    }
    if let Some(budget) = members.remove("taskBudget") {
        members.insert("budget".to_owned(), budget);
    }
    match payload::new_task(&to_raw_value(&members).map_err(internal)?, caller) {
        Ok(new) => Ok(Some(new)),
        Err(problem) if problem.errors.is_empty() => Err(problem),
        Err(problem) if problem.code != crate::problem::Code::InvalidRequest => Err(problem),
        Err(problem) => {
            for field in problem.errors {
                let meant = nearest(field.pointer.trim_start_matches('/'), OWN);
                match (field.pointer.strip_prefix("/budget"), meant) {
                    (Some(rest), _) => faults.add(format!("/taskBudget{rest}"), field.detail),
                    // A task does not know what a campaign may have been meant to have.
                    (None, Some(meant)) if field.detail.starts_with("is not known") => {
                        faults.add(field.pointer, format!("is not known here; did you mean `{meant}`?"));
                    }
                    (None, _) => faults.add(field.pointer, field.detail),
                }
            }
            Ok(None)
        }
    }
}

/// Reads the payload of `POST /v1/campaigns`.
pub fn new_campaign(raw: &RawValue, caller: &Caller) -> Result<NewCampaign, Problem> {
    let mut faults = Faults::default();
    let internal = || Problem::internal("an object without faults is missing");
    let Some(mut body) = Object::read(raw, "", &mut faults) else {
        faults.none()?;
        return Err(internal());
    };
    let before = faults.count();
    let name = body.text("name", name, &mut faults);
    if name.is_none() && faults.count() == before {
        faults.add("/name", "is required: what do you call it?");
    }
    let repos = repos(&mut body, &mut faults);
    let budget = payload::budget(&mut body, &mut faults);
    let concurrency = body.whole("concurrency", 1, MAX_CONCURRENCY.into(), &mut faults);
    let per_hour = body.whole("pullRequestsPerHour", 1, MAX_PULL_REQUESTS_PER_HOUR.into(), &mut faults);
    let stop_after_failures = stop_after(&mut body, repos.len(), &mut faults);
    let mut members = BTreeMap::new();
    for (member, value) in body.rest() {
        if members.insert(member.clone(), value).is_some() {
            faults.add(step("", &member), "comes twice; say it once");
        }
    }
    let new = task(members, repos.first(), caller, &mut faults)?;
    faults.none()?;
    let (Some(mut task), Some(name)) = (new, name) else { return Err(internal()) };
    let repos = with_shared(repos, &mut task);
    let small = |number: Option<u64>| number.and_then(|number| u32::try_from(number).ok());
    let limits = Limits {
        concurrency: small(concurrency).unwrap_or(DEFAULT_CONCURRENCY),
        pull_requests_per_hour: small(per_hour),
        stop_after_failures,
    };
    Ok(NewCampaign { name, task, repos, budget, limits })
}

/// The SHA-256 of what was asked for, secrets left out.
pub fn request_hash(new: &NewCampaign) -> String {
    let repos: Vec<_> = new.repos.iter().map(|repo| json!([repo.repo, repo.base, repo.branch])).collect();
    let canonical = json!([payload::request_hash(&new.task), new.name, repos, new.budget, new.limits]);
    Sha256::digest(canonical.to_string().as_bytes()).iter().map(|byte| format!("{byte:02x}")).collect()
}
