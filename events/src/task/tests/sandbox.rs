//! What happens to a task's machine: its setup, and what it uses.

use super::*;

fn with_setup() -> Story {
    let mut story = Story::working();
    let clone =
        Command::RecordClone { repo: 0, base: "main".into(), commit: oid('a'), sandbox: sandbox(), setup: true };
    story.when(clone).expect("cloned");
    story
}

#[test]
fn a_setup_comes_between_the_clone_and_the_machine_and_is_begun_once() {
    let mut story = with_setup();
    assert_eq!(story.next(), Step::SetUp(sandbox()));
    let start = || Command::RecordSetupStart { key: "k1".into(), sandbox: sandbox() };
    let started = story.when(start()).expect("started");
    assert!(matches!(&started[..], [TaskEvent::SetupStarted { repos, .. }] if repos.len() == 1), "{started:?}");
    // The next process goes on with it, and says nothing twice.
    assert_eq!(story.when(start()), Ok(Vec::new()));
    assert_eq!(story.next(), Step::SetUp(sandbox()));
    story.when(set_up(None)).expect("set up");
    assert_eq!(story.next(), Step::StartSandbox(sandbox()));
    assert_eq!(story.when(set_up(None)), Err(Refusal::MovedOn));
    story.when(Command::RecordSandbox { sandbox: sandbox(), start_ms: 40, image_digest: None }).expect("started");
    // A sandbox that is lost is started over the same disk, which has its setup.
    story.when(Command::RecordSandboxStopped { sandbox: sandbox(), reason: SandboxEnd::Lost }).expect("lost");
    assert_eq!(story.next(), Step::StartSandbox(sandbox()));
}

#[test]
fn a_setup_that_fails_ends_the_task_and_one_that_may_pass_is_done_again_but_not_for_ever() {
    let mut story = with_setup();
    let failed = failure(FailureCode::SetupFailed);
    story.when(set_up(Some((failed.clone(), Then::GiveUp)))).expect("recorded");
    assert_eq!(story.kinds[story.kinds.len() - 2..], ["setup-finished", "step-failed"]);
    assert_eq!(story.next(), Step::Finish(Ending::Failed(failed.clone())));

    let mut story = with_setup();
    for failures in 1..=3 {
        story.when(Command::RecordSetupStart { key: "k1".into(), sandbox: sandbox() }).expect("started");
        let again = Then::Retry { until: now(), wait_ms: 1 };
        story.when(set_up(Some((failed.clone(), again)))).expect("recorded");
        assert_eq!((story.task().failures, story.next()), (failures, Step::SetUp(sandbox())));
    }
    story.when(Command::Cancel { reason: None }).expect("cancelled");
    assert_eq!(story.when(set_up(None)), Err(Refusal::MovedOn));
    assert_eq!(story.next(), Step::Finish(Ending::Cancelled));
}

#[test]
fn an_attempt_in_the_same_workspace_has_its_setup() {
    let mut story = Story { task: None, kinds: Vec::new() };
    let retry = Some(Attempts { most: 2, workspace: Workspace::Same });
    story.when(Command::Create(Box::new(TaskSpec { retry, ..spec() }))).expect("created");
    story.when(Command::Claim { node: "n".into() }).expect("claimed");
    story.when(Command::Begin { now: now(), delivers: false }).expect("begun");
    let clone =
        Command::RecordClone { repo: 0, base: "main".into(), commit: oid('a'), sandbox: sandbox(), setup: true };
    story.when(clone).expect("cloned");
    story.when(set_up(None)).expect("set up");
    let failed = failure(FailureCode::NetworkDropped);
    story.when(Command::RecordFailure { failure: failed, then: Then::GiveUp }).expect("failed");
    assert!(matches!(story.next(), Step::NextAttempt(_, Workspace::Same)));
    story.when(Command::NextAttempt { refund: NanoUsd::ZERO, until: now(), wait_ms: 1 }).expect("left");
    story.when(Command::Begin { now: now(), delivers: false }).expect("begun");
    assert_eq!(story.next(), Step::StartSandbox(sandbox()));
}

fn usage_of(sandbox: SandboxId) -> Command {
    let limits = SandboxLimits { cpus: 2.0, memory_bytes: 1, pids: 1, disk_bytes: 1 };
    Command::RecordSandboxUsage(Box::new(SandboxUsage {
        sandbox,
        cpu_ms: 1,
        cpus_used: None,
        memory_bytes: 1,
        memory_peak_bytes: 1,
        pids: 1,
        disk_bytes: 1,
        oom_kills: 0,
        egress: None,
        limits,
    }))
}

#[test]
fn samples_change_no_plan_and_come_to_an_end() {
    let mut story = Story::asked(1);
    let next = story.next();
    let other = SandboxId::from_uuid(Uuid::from_u128(77));
    assert_eq!(story.when(usage_of(other)), Err(Refusal::MovedOn), "of another sandbox");
    for _ in 0..MAX_SAMPLES + 5 {
        story.when(usage_of(sandbox())).expect("taken or passed over");
    }
    assert_eq!(story.kinds.iter().filter(|kind| **kind == "sandbox-usage").count(), MAX_SAMPLES as usize);
    assert_eq!(story.next(), next);
    let entry = Command::RecordOperatorEntry {
        sandbox: sandbox(),
        at: now(),
        operator: "ada".into(),
        how: OperatorEntry::Shell,
        program: "sh".into(),
    };
    story.when(entry).expect("whatever the plan is");
    assert_eq!(story.next(), next);
}

#[test]
fn the_last_sample_comes_with_the_end_of_the_sandbox() {
    let mut story = Story::asked(1);
    story.when(reply(1, vec![text("Done.")], StopReason::EndTurn)).expect("reply");
    story.when(commit()).expect("commit");
    let Command::RecordSandboxUsage(last) = usage_of(sandbox()) else { panic!("a sample") };
    let end = |last| Command::RecordSandboxEnd { sandbox: sandbox(), reason: SandboxEnd::Finished, last };
    story.when(end(Some(last.clone()))).expect("stopped");
    assert_eq!(story.kinds[story.kinds.len() - 2..], ["sandbox-usage", "sandbox-stopped"]);
    assert_eq!(story.when(end(Some(last))), Err(Refusal::MovedOn));
}
