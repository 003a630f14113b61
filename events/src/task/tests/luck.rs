//! Tasks of random lives: whatever happens to them, each ends once, within its budget.

use proptest::prelude::*;

use super::*;

/// What may happen while a harness runs, one thing at a time.
fn run_harness(task: &Task, number: u128, luck: u8, price: i64, then: Then) -> Command {
    let run = &task.current().expect("it runs").harness;
    match (luck % 16, run.open.values().next()) {
        (0, _) => Command::RecordSandboxStopped { sandbox: sandbox(), reason: SandboxEnd::Lost },
        (1..=3, _) => Command::RecordHarnessOutput {
            run: run.run,
            offset: run.offset + 10,
            session: Some("s".into()),
            said: vec![HarnessWord::Message(Content::Inline("Hm.".into()))],
        },
        (4..=7, Some(open)) => {
            let stop = luck.is_multiple_of(2).then_some(StopReason::EndTurn);
            call_end(open.call, Some(charge(open.reserved.nanos().min(price))), stop)
        }
        (8..=9, Some(open)) => call_end(open.call, None, None),
        (10..=13, _) if task.dollars_left().is_some_and(|left| left >= NanoUsd::from_nanos(200)) => {
            let reserved = NanoUsd::from_nanos(200);
            let open = OpenCall { call: call(number), reserved, reserved_tokens: 5, max_output_tokens: 5 };
            Command::RecordCall { open, model: "m".into() }
        }
        (_, Some(open)) => call_end(open.call, None, Some(StopReason::ToolUse)),
        (_, None) => {
            let failed = verdict(task, Some(0)).err().map(|failure| (failure, then));
            Command::RecordHarnessEnd { run: run.run, exit_code: Some(0), duration_ms: 1, failed }
        }
    }
}

fn may_be_unchanged(task: &Task, repo: usize) -> bool {
    let repos = &task.current().expect("it works").repos;
    repos.iter().enumerate().any(|(other, work)| other != repo && (work.outcome.is_none() || work.commit().is_some()))
}

/// Does whatever the step asks for, with luck and prices drawn at random, until the task rests.
fn drive(harness: Harness, retry: Option<Attempts>, further: usize, luck: &[(u8, u16)]) -> Story {
    let mut story = Story { task: None, kinds: Vec::new() };
    story.when(Command::Create(Box::new(TaskSpec { harness, retry, ..several(1 + further) }))).expect("created");
    for (turn, (luck, price)) in luck.iter().cycle().take(10_000).enumerate() {
        let number = turn as u128;
        let failed = failure(FailureCode::NetworkDropped);
        let give_up = story.task().failures >= 4;
        let then = if give_up { Then::GiveUp } else { Then::Retry { until: now(), wait_ms: 1 } };
        let asking = matches!(story.next(), Step::AskModel(_) | Step::AbandonModel(_));
        // An attempt fails once: what follows is cleaning up, and whatever happens to that, the task's fate stands.
        let given_up = story.task().current().is_some_and(|attempt| attempt.failure.is_some());
        let command = match story.next() {
            Step::Rest => return story,
            Step::WaitForClaim => Command::Claim { node: "n".into() },
            // Now and then somebody has cleared the disk.
            Step::Begin => Command::Begin { now: now(), delivers: luck % 4 != 1 },
            Step::WaitForCredentials => {
                Command::SupplyCredentials { supplied: vec![CredentialKind::Model], now: now() }
            }
            _ if luck % 32 == 31 && !asking && !story.task().cancel_requested => Command::Cancel { reason: None },
            _ if luck % 32 == 15 && !asking && !given_up => Command::RecordFailure { failure: failed, then },
            Step::WaitUntil(until) => unreachable!("{until} is not over yet"),
            Step::ReserveModel => reserve(number, i64::from(*price % 300)),
            Step::Clone(repo) => {
                let setup = luck % 3 == 0;
                Command::RecordClone { repo, base: "main".into(), commit: oid('a'), sandbox: sandbox(), setup }
            }
            // Shifted as time goes by: luck that repeats itself would only ever begin it.
            Step::SetUp(_) if luck.wrapping_add(number as u8) % 8 == 3 => {
                Command::RecordSetupStart { key: format!("k{}", luck % 2), sandbox: sandbox() }
            }
            Step::SetUp(_) => set_up((luck % 4 == 1).then_some((failed, then))),
            Step::StartSandbox(_) => Command::RecordSandbox { sandbox: sandbox(), start_ms: 1, image_digest: None },
            Step::BeginHarness(_) => Command::BeginHarness,
            Step::RunHarness => {
                // Shifted as time goes by: luck that repeats itself would never let a run end.
                let luck = luck.wrapping_add((turn / 16) as u8);
                run_harness(story.task(), number, luck, i64::from(*price), then)
            }
            Step::AbandonModel(open) if harness != Harness::Builtin => call_end(open.call, Some(charge(7)), None),
            Step::AskModel(open) | Step::AbandonModel(open) if luck % 4 == 0 || story.task().cancel_requested => {
                Command::RecordModelFailure {
                    call: open.call,
                    charge: (luck % 8 == 0).then(|| charge(open.reserved.nanos().min(i64::from(*price)))),
                    failure: failed,
                    then,
                }
            }
            Step::AskModel(open) | Step::AbandonModel(open) => {
                let content = if luck % 2 == 0 { vec![tool("t"), tool("u")] } else { vec![text("Done.")] };
                let stop = if luck % 2 == 0 { StopReason::ToolUse } else { StopReason::EndTurn };
                let charge = charge(open.reserved.nanos().min(i64::from(*price)));
                Command::RecordReply { call: open.call, charge, content, stop_reason: stop }
            }
            Step::CallTool(tool) => Command::CallTool { tool_call: tool.id },
            Step::RunTool(_) if luck % 8 == 7 => {
                Command::RecordSandboxStopped { sandbox: sandbox(), reason: SandboxEnd::Lost }
            }
            Step::RunTool(tool) | Step::InterruptTool(tool) => tool_done(&tool.id),
            Step::Commit(repo) if luck % 4 == 2 && may_be_unchanged(story.task(), repo) => {
                Command::RecordUnchanged { repo }
            }
            Step::Commit(repo) => commit_in(repo),
            Step::StopSandbox(sandbox, reason) => Command::RecordSandboxStopped { sandbox, reason },
            Step::Push(repo) => Command::RecordPush { repo, outcome: PushOutcome::Pushed },
            Step::OpenPullRequest(repo) if luck % 4 == 1 => {
                let opened = PullRequestOutcome::Omitted { reason: "there are none".into() };
                Command::RecordPullRequest { repo, opened, notes: vec![("labels".into(), "none".into())] }
            }
            Step::OpenPullRequest(repo) => opened(repo),
            Step::LinkPullRequest(repo) => Command::RecordLink { repo, notes: Vec::new() },
            Step::Report(repo, _) => Command::RecordReport { repo, notes: Vec::new() },
            Step::NextAttempt(..) => Command::NextAttempt { refund: NanoUsd::ZERO, until: now(), wait_ms: 1 },
            Step::Finish(ending) => Command::Finish { ending, refund: NanoUsd::ZERO },
        };
        match story.when(command) {
            Ok(_) => {}
            Err(Refusal::OverBudget | Refusal::OutOfCalls) => {
                let failure = failure(FailureCode::BudgetExceeded);
                story.when(Command::RecordFailure { failure, then: Then::GiveUp }).expect("over budget ends it");
            }
            Err(refusal) => panic!("the step {:?} led to {refusal}", story.next()),
        }
        let (held, _) = story.task().reserved();
        assert!(story.task().spent.cost + held <= NanoUsd::from_nanos(1_000), "over the cap");
    }
    panic!("no end after {:?}", &story.kinds[story.kinds.len().saturating_sub(12)..]);
}

proptest! {
    #[test]
    fn whatever_the_luck_every_task_ends_within_its_budget(harness in any::<bool>(), retry in 0..3, further in 0..3usize, luck in proptest::collection::vec(any::<(u8, u16)>(), 1..60)) {
        let workspace = if retry == 1 { Workspace::Fresh } else { Workspace::Same };
        let retry = (retry > 0).then_some(Attempts { most: 3, workspace });
        let story = drive(if harness { Harness::Codex } else { Harness::Builtin }, retry, further, &luck);
        let ends = story.kinds.iter().filter(|kind| ["succeeded", "failed", "cancelled"].contains(kind)).count();
        prop_assert_eq!(ends, 1);
        prop_assert_eq!(story.task().reserved().0, NanoUsd::ZERO);
        prop_assert!(story.task().current().is_none());
    }
}
