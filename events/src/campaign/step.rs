//! What comes next for a campaign: a pure function of its state, of what its running tasks have shown, and of the time.

use std::collections::BTreeMap;

use jiff::{SignedDuration, Timestamp};

use super::state::{Campaign, Phase, WINDOW};

/// What is to be done.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Step {
    /// Begin the task for this repository.
    Start(u32),
    /// Nothing before this time, unless a task that runs comes to an end.
    WaitUntil(Timestamp),
    /// Nothing until a task that runs comes to an end, or a caller asks for something.
    Follow,
    /// Nothing until a caller asks for something.
    Rest,
}

/// What comes next. `seen`: when the tasks that run have opened pull requests.
pub fn next_step(campaign: &Campaign, seen: &BTreeMap<u32, Vec<Timestamp>>, now: Timestamp) -> Step {
    let running = campaign.running().count();
    let idle = if running > 0 { Step::Follow } else { Step::Rest };
    if campaign.finished || campaign.cancelled || campaign.paused.is_some() {
        return idle;
    }
    let first = campaign.indexed().find(|(_, child)| child.phase == Phase::Waiting);
    let Some((index, _)) = first else { return idle };
    if running >= usize::try_from(campaign.spec.limits.concurrency).unwrap_or(usize::MAX) {
        return Step::Follow;
    }
    let Some(limit) = campaign.spec.limits.pull_requests_per_hour else { return Step::Start(index) };
    match room_for_a_pull_request(campaign, seen, limit, now) {
        Room::Free => Step::Start(index),
        Room::At(time) => Step::WaitUntil(time),
        Room::None => Step::Follow,
    }
}

enum Room {
    Free,
    At(Timestamp),
    None,
}

/// Whether one more task may begin, if each that runs and has opened no pull request yet opens one in a moment. So no
/// sixty minutes, wherever they begin, hold more than the limit.
fn room_for_a_pull_request(
    campaign: &Campaign,
    seen: &BTreeMap<u32, Vec<Timestamp>>,
    limit: u32,
    now: Timestamp,
) -> Room {
    let shown = |index: &u32| seen.get(index).map(Vec::as_slice).unwrap_or_default();
    let running: Vec<u32> = campaign.running().map(|(index, ..)| index).collect();
    let to_come = running.iter().filter(|index| shown(index).is_empty()).count();
    let mut recent: Vec<Timestamp> = campaign.opened.iter().chain(running.iter().flat_map(shown)).copied().collect();
    recent.retain(|opened| now.duration_since(*opened) <= WINDOW);
    recent.sort_unstable();
    let limit = usize::try_from(limit).unwrap_or(usize::MAX);
    let taken = recent.len() + to_come;
    if taken < limit {
        return Room::Free;
    }
    // So many have to be more than an hour ago.
    match recent.get(taken - limit) {
        Some(opened) => Room::At(*opened + WINDOW + SignedDuration::from_micros(1)),
        None => Room::None,
    }
}
