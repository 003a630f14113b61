//! Given what happened, when a command comes, then this happens; and thousands of random lives of a campaign, in which
//! processes die, callers cancel and retry, and no limit is ever passed.

use std::collections::BTreeMap;

use jiff::{SignedDuration, Timestamp};
use uuid::Uuid;

use super::event::{CampaignEvent, CampaignRepo, CampaignSpec, ChildOutcome, Limits, OpenedPullRequest, child_id};
use super::state::{Campaign, Phase, WINDOW, evolve};
use super::step::{Step, next_step};
use super::{CampaignResource, CampaignStatus, Command, Progress, Refusal, decide};
use crate::envelope::{Envelope, Position, Revision, StreamName};
use crate::failure::FailureCode;
use crate::id::CampaignId;
use crate::repo::RepoRef;
use crate::task::event::{Budget, Harness, TaskSpec};

const FAILED: ChildOutcome = ChildOutcome::Failed { code: FailureCode::CloneFailed };

fn id() -> CampaignId {
    CampaignId::from_uuid(Uuid::from_u128(5))
}

fn now() -> Timestamp {
    "2026-11-22T10:00:00Z".parse().unwrap()
}

fn repo(number: usize) -> CampaignRepo {
    let repo = RepoRef::new("local", &format!("acme/r{number}")).unwrap();
    CampaignRepo { repo, base: None, branch: format!("orchestra/b{number}") }
}

fn spec(repos: usize, limits: Limits) -> CampaignSpec {
    CampaignSpec {
        name: "Bump it".into(),
        template: TaskSpec {
            repo: repo(0).repo,
            task: "Bump it".into(),
            model: "m".into(),
            harness: Harness::Builtin,
            command: Vec::new(),
            retry: None,
            team: "platform".into(),
            project: None,
            environment: None,
            task_type: None,
            customer: None,
            budget: Budget::default(),
            base: None,
            branch: "orchestra/b0".into(),
            further: Vec::new(),
            pull_request: None,
            campaign: Some(id()),
            image: "default".into(),
            egress: Vec::new(),
            timeout_seconds: 60,
            metadata: serde_json::Map::new(),
            request_hash: None,
            caller_brings_model_key: false,
            caller_brings_git_token: false,
        },
        repos: (0..repos).map(repo).collect(),
        budget: Budget::default(),
        limits,
        request_hash: None,
    }
}

fn limits(concurrency: u32) -> Limits {
    Limits { concurrency, pull_requests_per_hour: None, stop_after_failures: None }
}

/// A campaign's stream in the making.
struct Story {
    campaign: Option<Campaign>,
    log: Vec<CampaignEvent>,
    seen: BTreeMap<u32, Vec<Timestamp>>,
    now: Timestamp,
}

impl Story {
    fn of(repos: usize, limits: Limits) -> Self {
        let mut story = Self { campaign: None, log: Vec::new(), seen: BTreeMap::new(), now: now() };
        story.when(Command::Create(Box::new(spec(repos, limits)))).unwrap();
        story
    }

    fn when(&mut self, command: Command) -> Result<Vec<&'static str>, Refusal> {
        let events = decide(self.campaign.as_ref(), command)?;
        let kinds = events.iter().map(CampaignEvent::kind).collect();
        self.campaign = events.iter().fold(self.campaign.take(), evolve);
        self.log.extend(events);
        Ok(kinds)
    }

    fn campaign(&self) -> &Campaign {
        self.campaign.as_ref().unwrap()
    }

    fn next(&self) -> Step {
        next_step(self.campaign(), &self.seen, self.now)
    }

    fn start(&mut self, index: u32) -> Result<Vec<&'static str>, Refusal> {
        let run = self.campaign().child(index).map_or(0, |child| child.run);
        let after = (run > 0).then_some(Revision(u64::from(run) * 10));
        self.when(Command::StartChild { index, task: child_id(id(), index), after })
    }

    fn end(&mut self, index: u32, outcome: ChildOutcome) -> Result<Vec<&'static str>, Refusal> {
        let run = self.campaign().child(index).map_or(0, |child| child.run);
        let seen = self.seen.remove(&index).unwrap_or_default();
        let opened = |opened_at| OpenedPullRequest { url: "u".into(), number: 1, opened_at };
        let pull_requests = seen.into_iter().map(opened).collect();
        self.when(Command::RecordChild { index, task: child_id(id(), index), run, outcome, pull_requests })
    }

    /// The outside's view, folded from the same log.
    fn resource(&self) -> CampaignResource {
        let fold = |resource, (revision, event): (u64, &CampaignEvent)| {
            let envelope = Envelope {
                revision: Revision(revision),
                position: Position(revision + 1),
                time: self.now,
                ..Envelope::example(StreamName::campaign(id()), event.kind(), event.data().unwrap().get())
            };
            assert_eq!(CampaignEvent::decode(&envelope).unwrap().as_ref(), Some(event));
            CampaignResource::fold(resource, &envelope, event)
        };
        (0..).zip(&self.log).fold(None, fold).unwrap()
    }
}

#[test]
fn the_repositories_are_begun_in_order_and_no_more_at_once_than_allowed() {
    let mut story = Story::of(3, limits(2));
    assert_eq!(story.next(), Step::Start(0));
    story.start(0).unwrap();
    assert_eq!(story.start(0), Err(Refusal::MovedOn), "it runs");
    assert_eq!(story.next(), Step::Start(1));
    story.start(1).unwrap();
    assert_eq!(story.next(), Step::Follow);
    assert_eq!(story.start(2), Err(Refusal::MovedOn), "two run");
    assert_eq!(story.end(0, ChildOutcome::Succeeded).unwrap(), ["campaign-child-finished"]);
    assert_eq!(story.end(0, FAILED), Err(Refusal::MovedOn), "said twice");
    story.start(2).unwrap();
    story.end(1, FAILED).unwrap();
    assert_eq!(story.end(2, ChildOutcome::Cancelled).unwrap(), ["campaign-child-finished", "campaign-finished"]);
    assert_eq!(story.next(), Step::Rest);
    let resource = story.resource();
    assert_eq!(resource.status, CampaignStatus::Finished);
    assert_eq!(resource.progress, Progress { succeeded: 1, failed: 1, cancelled: 1, ..Progress::default() });
}

#[test]
fn a_child_is_the_templates_task_on_another_repository() {
    let spec = spec(2, limits(1));
    let child = spec.child(id(), 1).unwrap();
    assert_eq!((child.repo.to_string(), &*child.branch), ("local:acme/r1".to_owned(), "orchestra/b1"));
    assert_eq!((child.campaign, &*child.task), (Some(id()), "Bump it"));
    assert_eq!(spec.child(id(), 2), None);
    assert_eq!(child_id(id(), 1), child_id(id(), 1));
    let other = CampaignId::from_uuid(Uuid::from_u128(6));
    assert!(child_id(id(), 1) != child_id(id(), 0) && child_id(id(), 1) != child_id(other, 1));
    assert_eq!(child_id(id(), 1).uuid().get_version_num(), 8);
}

#[test]
fn failures_pause_it_and_a_retry_does_only_them_again() {
    let mut story = Story::of(4, Limits { stop_after_failures: Some(2), ..limits(2) });
    story.start(0).unwrap();
    story.start(1).unwrap();
    assert_eq!(story.when(Command::Retry), Err(Refusal::NothingToRetry));
    story.end(0, FAILED).unwrap();
    story.start(2).unwrap();
    assert_eq!(story.end(1, FAILED).unwrap(), ["campaign-child-finished", "campaign-paused"]);
    assert_eq!((story.next(), story.start(3)), (Step::Follow, Err(Refusal::MovedOn)));
    assert!(story.resource().reason.contains("2 tasks failed"), "{}", story.resource().reason);
    // What runs goes on, and more failures pause nothing that is paused.
    assert_eq!(story.end(2, FAILED).unwrap(), ["campaign-child-finished"]);
    assert_eq!((story.next(), story.resource().status), (Step::Rest, CampaignStatus::Paused));
    assert_eq!(story.when(Command::Retry).unwrap(), ["campaign-retry-requested", "campaign-resumed"]);
    assert_eq!(story.resource().progress, Progress { waiting: 4, ..Progress::default() });
    for index in [0, 1] {
        assert_eq!(story.next(), Step::Start(index));
        story.start(index).unwrap();
    }
    let started = story.log.iter().rev().find(|event| event.kind() == "campaign-child-started").unwrap();
    assert!(
        matches!(started, CampaignEvent::CampaignChildStarted { run: 2, after: Some(Revision(10)), .. }),
        "{started:?}"
    );
    // The failures of before are not counted again.
    assert_eq!(story.end(0, FAILED).unwrap(), ["campaign-child-finished"]);
    story.end(1, ChildOutcome::Succeeded).unwrap();
    for index in [2, 3] {
        story.start(index).unwrap();
        story.end(index, ChildOutcome::Succeeded).unwrap();
    }
    assert!(story.campaign().finished);
    // One that is over is taken up again for what failed, and for nothing else.
    assert_eq!(story.when(Command::Retry).unwrap(), ["campaign-retry-requested"]);
    assert_eq!(story.resource().status, CampaignStatus::Running);
    story.start(0).unwrap();
    assert_eq!(story.end(0, ChildOutcome::Succeeded).unwrap(), ["campaign-child-finished", "campaign-finished"]);
    assert_eq!(story.when(Command::Retry), Err(Refusal::NothingToRetry));
}

#[test]
fn a_cancelled_campaign_begins_nothing_and_ends_with_its_last_task() {
    let mut story = Story::of(3, limits(1));
    story.start(0).unwrap();
    let cancel = || Command::Cancel { reason: Some("enough".into()) };
    assert_eq!(story.when(cancel()).unwrap(), ["campaign-cancelled"]);
    assert_eq!(story.when(cancel()), Ok(vec![]));
    assert_eq!((story.next(), story.start(1)), (Step::Follow, Err(Refusal::MovedOn)));
    // It had pushed already.
    assert_eq!(story.end(0, ChildOutcome::Succeeded).unwrap(), ["campaign-child-finished", "campaign-finished"]);
    let resource = story.resource();
    assert_eq!((resource.status, &*resource.reason), (CampaignStatus::Cancelled, "enough"));
    assert_eq!(resource.progress, Progress { succeeded: 1, cancelled: 2, ..Progress::default() });
    assert_eq!(story.when(Command::Retry), Err(Refusal::Ended("been cancelled")));
    let mut story = Story::of(3, limits(1));
    assert_eq!(story.when(cancel()).unwrap(), ["campaign-cancelled", "campaign-finished"]);
}

#[test]
fn pull_requests_are_counted_before_they_are_opened() {
    let mut story = Story::of(5, Limits { pull_requests_per_hour: Some(2), ..limits(4) });
    story.start(0).unwrap();
    story.start(1).unwrap();
    // Either may open one in a moment.
    assert_eq!(story.next(), Step::Follow);
    story.end(0, FAILED).unwrap();
    assert_eq!(story.next(), Step::Start(2));
    story.start(2).unwrap();
    story.seen.insert(1, vec![story.now]);
    story.end(1, ChildOutcome::Succeeded).unwrap();
    story.now += SignedDuration::from_mins(10);
    story.seen.insert(2, vec![story.now]);
    // The first of the two has to be an hour old.
    assert_eq!(story.next(), Step::WaitUntil(now() + WINDOW + SignedDuration::from_micros(1)));
    story.now = now() + WINDOW;
    assert!(matches!(story.next(), Step::WaitUntil(_)));
    story.now += SignedDuration::from_secs(1);
    assert_eq!(story.next(), Step::Start(3));
}

// ---- random lives --------------------------------------------------------------------------------------------------

const LIVES: u64 = 1_000;
const STEPS: usize = 120;

/// Steele, Lea and Flood's SplitMix64: small, and the same everywhere.
struct Dice(u64);

impl Dice {
    fn below(&mut self, end: u32) -> u32 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        u32::try_from((mixed ^ (mixed >> 31)) % u64::from(end.max(1))).unwrap()
    }

    fn one_in(&mut self, many: u32) -> bool {
        self.below(many) == 0
    }
}

/// What came of the lives, so that none of it is tested in vain.
#[derive(Debug, Default)]
struct Met {
    finished: u64,
    cancelled: u64,
    paused: u64,
    retried: u64,
    waited: u64,
    crashes: u64,
    pull_requests: u64,
}

struct Life {
    story: Story,
    dice: Dice,
    pull_requests: Vec<Timestamp>,
    may_run_again: Vec<bool>,
}

impl Life {
    fn new(seed: u64) -> Self {
        let mut dice = Dice(seed);
        let repos = 1 + dice.below(9);
        let limits = Limits {
            concurrency: 1 + dice.below(4),
            pull_requests_per_hour: dice.one_in(2).then(|| 1 + dice.below(4)),
            stop_after_failures: dice.one_in(2).then(|| 1 + dice.below(4)),
        };
        let repos = usize::try_from(repos).unwrap();
        Self { story: Story::of(repos, limits), dice, pull_requests: Vec::new(), may_run_again: vec![true; repos] }
    }

    /// One of those that run.
    fn any_running(&mut self) -> Option<u32> {
        let running: Vec<u32> = self.story.campaign().running().map(|(index, ..)| index).collect();
        let place = self.dice.below(u32::try_from(running.len()).unwrap());
        running.get(usize::try_from(place).unwrap()).copied()
    }

    fn go_on(&mut self, met: &mut Met) {
        match self.story.next() {
            Step::Start(index) => {
                let place = usize::try_from(index).unwrap();
                assert!(self.may_run_again[place], "{index} is begun again and has not failed");
                self.may_run_again[place] = false;
                self.story.start(index).expect("what comes next is allowed");
            }
            Step::WaitUntil(time) => {
                met.waited += 1;
                assert!(time > self.story.now);
                if self.dice.one_in(3) {
                    self.story.now = time;
                }
            }
            Step::Follow => assert!(self.story.campaign().running().count() > 0, "it would wait for ever"),
            Step::Rest => {
                let campaign = self.story.campaign();
                assert!(campaign.finished || campaign.paused.is_some(), "it rests and is not over");
            }
        }
    }

    fn step(&mut self, met: &mut Met) {
        match self.dice.below(100) {
            0..=39 => self.go_on(met),
            40..=54 => {
                let Some(index) = self.any_running() else { return };
                // A task opens one pull request per run.
                if !self.story.seen.contains_key(&index) {
                    self.story.seen.insert(index, vec![self.story.now]);
                    self.pull_requests.push(self.story.now);
                    met.pull_requests += 1;
                }
            }
            55..=79 => {
                let Some(index) = self.any_running() else { return };
                let outcome = match self.dice.below(10) {
                    0..=5 => ChildOutcome::Succeeded,
                    6..=8 => FAILED,
                    _ => ChildOutcome::Cancelled,
                };
                let kinds = self.story.end(index, outcome).expect("it ran");
                met.paused += u64::from(kinds.contains(&"campaign-paused"));
                met.finished += u64::from(kinds.contains(&"campaign-finished"));
            }
            80..=83 => {
                let failed: Vec<u32> = self.story.campaign().failed().collect();
                match self.story.when(Command::Retry) {
                    Ok(_) => {
                        for index in &failed {
                            self.may_run_again[usize::try_from(*index).unwrap()] = true;
                        }
                        met.retried += u64::from(!failed.is_empty());
                    }
                    Err(Refusal::NothingToRetry | Refusal::Ended(_)) => {}
                    Err(other) => panic!("{other}"),
                }
            }
            84 if self.dice.one_in(3) => {
                met.cancelled += u64::from(self.story.when(Command::Cancel { reason: None }).is_ok());
            }
            85..=91 => {
                // The process is gone. The next one folds, and reads again what its tasks have shown.
                met.crashes += 1;
                let folded = self.story.log.iter().fold(None, evolve);
                assert_eq!(folded, self.story.campaign);
                self.check_the_view();
                self.story.campaign = folded;
            }
            _ => self.story.now += SignedDuration::from_secs(i64::from(self.dice.below(1_500))),
        }
        self.check();
    }

    fn check(&self) {
        let campaign = self.story.campaign();
        let limits = campaign.spec.limits;
        let running = campaign.running().count();
        assert!(running <= usize::try_from(limits.concurrency).unwrap());
        if let Some(most) = limits.pull_requests_per_hour {
            // Time passes in one direction here, so the window that ends with the last one is the fullest.
            for last in &self.pull_requests {
                let within = |at: &&Timestamp| *at <= last && last.duration_since(**at) <= WINDOW;
                let count = self.pull_requests.iter().filter(within).count();
                assert!(count <= usize::try_from(most).unwrap(), "{count} in the hour before {last}");
            }
        }
        if let Some(most) = limits.stop_after_failures
            && campaign.failures >= most
        {
            assert!(campaign.paused.is_some() || campaign.cancelled || campaign.finished, "{campaign:?}");
        }
    }

    /// The outside's view agrees.
    fn check_the_view(&self) {
        let campaign = self.story.campaign();
        let running = campaign.running().count();
        let waiting = campaign.children.iter().filter(|child| child.phase == Phase::Waiting).count();
        let resource = self.story.resource();
        let (succeeded, failed, _) = campaign.tally();
        assert_eq!((resource.progress.succeeded, resource.progress.failed), (succeeded, failed));
        assert_eq!(usize::try_from(resource.progress.running).unwrap(), running);
        assert_eq!(usize::try_from(resource.progress.total()).unwrap(), campaign.children.len());
        assert_eq!(resource.is_over(), campaign.finished);
        if !campaign.cancelled {
            assert_eq!(usize::try_from(resource.progress.waiting).unwrap(), waiting);
        }
        for (index, child) in campaign.indexed() {
            let word = if campaign.finished { "cancelled" } else { "waiting" };
            let expected = (child.phase == Phase::Waiting).then_some(word);
            assert_eq!(resource.instead_of_its_task(index, child.run > 0), expected);
        }
    }
}

#[test]
fn no_life_passes_a_limit_or_hangs() {
    let mut met = Met::default();
    for seed in 0..LIVES {
        let mut life = Life::new(seed);
        for _ in 0..STEPS {
            life.step(&mut met);
        }
        // Left alone, with tasks that end well, it comes to its end.
        let campaign = life.story.campaign();
        if campaign.paused.is_some() {
            life.story.when(Command::Retry).expect("a paused one goes on");
            life.may_run_again.fill(true);
        }
        while !life.story.campaign().finished {
            assert!(life.story.log.len() < 400, "{seed}: {:?}", life.story.campaign());
            life.go_on(&mut met);
            if let Some(index) = life.any_running() {
                life.story.end(index, ChildOutcome::Succeeded).expect("it ran");
            }
            life.story.now += SignedDuration::from_mins(20);
            life.check();
        }
        life.check_the_view();
    }
    println!("{met:?}");
    let Met { finished, cancelled, paused, retried, waited, crashes, pull_requests } = met;
    for (what, times) in [
        ("finished", finished),
        ("cancelled", cancelled),
        ("paused", paused),
        ("retried", retried),
        ("waited for the hour to pass", waited),
        ("crashes", crashes),
        ("pull requests", pull_requests),
    ] {
        assert!(times > LIVES / 20, "{what}: {times}");
    }
}
