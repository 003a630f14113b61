//! Teams that live at random: tasks that call models through a ledger, die between two streams and are taken up again,
//! are refunded; plans that change, and months that are closed meanwhile.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use jiff::civil::Date;
use jiff::tz::TimeZone;
use jiff::{SignedDuration, Timestamp, ToSpan};
use orchestra_actors::policy::RetryPolicy;
use orchestra_actors::{BillingDesk, BillingError, BillingService as _};
use orchestra_events::billing::{
    self, BillingEvent, Currency, Month, NumberedLine, Override, PeriodClosed, Plan, Terms,
};
use orchestra_events::blob::{BlobRef, Content};
use orchestra_events::ledger::event::Budget as ScopeBudget;
use orchestra_events::ledger::{self, Amount, Cap, LedgerEvent, Path, Quote, Reserve, Settle, Zones};
use orchestra_events::projections::{ReadModels, project};
use orchestra_events::repo::RepoRef;
use orchestra_events::store::memory::MemoryStore;
use orchestra_events::store::read_whole_stream;
use orchestra_events::task::command::{Charge, Command, PullRequestOutcome, Then};
use orchestra_events::task::conversation::{Block, StopReason, Usage};
use orchestra_events::task::event::{Attempts, Budget, ErasureReason, Harness, PushOutcome, ToolOutcome, Workspace};
use orchestra_events::task::state::{Ending, OpenCall, Phase};
use orchestra_events::task::{self, Step, Task, TaskEvent, TaskSpec, next_step};
use orchestra_events::{
    Actor, CallId, CommitId, EventId, EventStore as _, Expected, Failure, FailureCode, NanoUsd, NewEvent, Private,
    SandboxId, StreamName, TaskId,
};
use serde_json::value::RawValue;
use tempfile::TempDir;
use tokio::sync::oneshot;
use tokio::task::JoinHandle;
use uuid::Uuid;

pub const TEAMS: [&str; 2] = ["a", "b"];
const PROJECTS: [Option<&str>; 3] = [None, Some("p"), Some("q")];
const CUSTOMERS: [Option<&str>; 3] = [None, Some("Acme"), Some("Böhm & Co")];
const MODELS: [&str; 2] = ["large", "small"];
const STARTS: [&str; 4] =
    ["2026-10-24T20:00:00Z", "2026-10-31T20:00:00Z", "2026-12-30T23:00:00Z", "2028-02-27T12:00:00Z"];
/// Most tasks at the same time.
const MOST_OPEN: usize = 6;
/// How long the read models may take.
const PATIENCE: Duration = Duration::from_secs(60);

/// What came of it, so that none of it is tested in vain.
#[derive(Debug, Default)]
pub struct Seen {
    pub refunds: u64,
    pub crashes: u64,
    pub unconfirmed: u64,
    pub late: u64,
    pub closed: u64,
    pub adjustments: u64,
    pub plans: u64,
    pub resumed: u64,
    pub minima: u64,
    pub erased: u64,
}

/// Steele, Lea and Flood's SplitMix64: small, and the same everywhere.
struct Dice(u64);

impl Dice {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    fn below(&mut self, end: u64) -> u64 {
        self.next() % end.max(1)
    }

    fn nanos(&mut self, end: i64) -> NanoUsd {
        NanoUsd::from_nanos(i64::try_from(self.below(u64::try_from(end).unwrap())).unwrap())
    }

    fn one_in(&mut self, many: u64) -> bool {
        self.below(many) == 0
    }

    fn of<T: Copy>(&mut self, from: &[T]) -> T {
        from[usize::try_from(self.below(from.len() as u64)).unwrap()]
    }
}

/// An event on its way into the log: its type, what stays of it, and what may be forgotten.
type Written = (&'static str, Box<RawValue>, Option<Private>);

/// A month as it was when it was closed.
pub struct Kept {
    pub closed: PeriodClosed,
    pub lines: Vec<NumberedLine>,
}

/// The teams, and all that is known of them.
pub struct World {
    pub store: Arc<MemoryStore>,
    pub read: Arc<ReadModels>,
    pub closed: BTreeMap<(String, Month), Kept>,
    desk: BillingDesk,
    folder: TempDir,
    now: Arc<Mutex<Timestamp>>,
    dice: Dice,
    zones: Zones,
    ledgers: HashMap<&'static str, ledger::State>,
    tasks: BTreeMap<TaskId, Task>,
    /// How calls ended in the ledger, with the day they were reserved on.
    ends: HashMap<CallId, Option<Charge>>,
    days: HashMap<CallId, Date>,
    /// What the ledgers' streams say that was refunded, however long ago.
    refunds: HashMap<TaskId, NanoUsd>,
    /// The tasks whose words are gone.
    pub erased: HashSet<TaskId>,
    policy: RetryPolicy,
    stop: Option<oneshot::Sender<()>>,
    projector: Option<JoinHandle<()>>,
}

fn failure(code: FailureCode) -> Failure {
    Failure::new(code, "It did not go.")
}

fn task_succeeded(task: &Task) -> bool {
    matches!(task.phase, Phase::Ended(Ending::Succeeded))
}

impl World {
    pub fn new(seed: u64) -> Self {
        let mut dice = Dice(seed);
        let folder = tempfile::tempdir().unwrap();
        let store = Arc::new(MemoryStore::new());
        let read = Arc::new(ReadModels::open(&folder.path().join("read.db")).unwrap());
        let now = Arc::new(Mutex::new(dice.of(&STARTS).parse().unwrap()));
        let told = Arc::clone(&now);
        let clock = Arc::new(move || *told.lock().unwrap());
        let desk = BillingDesk::with_clock(Arc::clone(&store) as _, Arc::clone(&read), clock);
        let (stop, stopped) = oneshot::channel::<()>();
        let cancel = async {
            let _ = stopped.await;
        };
        let projector = tokio::spawn(project(Arc::clone(&store) as _, Arc::clone(&read), cancel));
        let mut zones = Zones::utc();
        zones.insert("Pacific/Kiritimati", TimeZone::get("Pacific/Kiritimati").unwrap());
        Self {
            store,
            read,
            closed: BTreeMap::new(),
            desk,
            folder,
            now,
            dice,
            zones,
            ledgers: TEAMS.into_iter().map(|team| (team, ledger::State::default())).collect(),
            tasks: BTreeMap::new(),
            ends: HashMap::new(),
            days: HashMap::new(),
            refunds: HashMap::new(),
            erased: HashSet::new(),
            policy: RetryPolicy::default(),
            stop: Some(stop),
            projector: Some(projector),
        }
    }

    pub async fn end(mut self) {
        drop(self.stop.take());
        self.projector.take().unwrap().await.unwrap();
    }

    /// Read models that have seen nothing yet.
    pub fn other_read_models(&self) -> ReadModels {
        ReadModels::open(&self.folder.path().join("other.db")).unwrap()
    }

    fn now(&self) -> Timestamp {
        *self.now.lock().unwrap()
    }

    fn today(&self) -> Date {
        self.now().to_zoned(TimeZone::UTC).date()
    }

    async fn append(&self, stream: &StreamName, events: Vec<Written>) {
        let new = |(kind, data, private): Written| NewEvent {
            id: EventId(Uuid::now_v7()),
            kind: kind.into(),
            schema: 1,
            time: self.now(),
            actor: Actor::system("test"),
            correlation: None,
            causation: None,
            data,
            private,
        };
        let events = events.into_iter().map(new).collect();
        self.store.append(stream, Expected::Any, events).await.unwrap();
    }

    async fn ask_ledger(
        &mut self,
        team: &'static str,
        command: ledger::Command,
    ) -> Result<Vec<LedgerEvent>, ledger::Refusal> {
        let state = self.ledgers.get_mut(team).unwrap();
        let events = ledger::decide(state, command, &self.zones)?;
        for event in &events {
            *state = ledger::evolve(std::mem::take(state), event);
            if let LedgerEvent::Reserved(reserved) = event {
                self.days.insert(reserved.call, reserved.day);
            }
            if let LedgerEvent::Refunded(refunded) = event {
                *self.refunds.entry(refunded.task).or_default() += refunded.nano_usd;
            }
        }
        if !events.is_empty() {
            let data = events.iter().map(|event| (event.kind(), event.data().unwrap(), None)).collect();
            self.append(&StreamName::ledger(team).unwrap(), data).await;
        }
        Ok(events)
    }

    async fn ask_task(&mut self, id: TaskId, command: Command) -> bool {
        let task = self.tasks.remove(&id);
        let events = match task::decide(task.as_ref(), command) {
            Ok(events) => events,
            Err(refusal) => {
                let step = task.as_ref().map(|task| next_step(task, self.now()));
                if let Some(task) = task {
                    self.tasks.insert(id, task);
                }
                panic!("{step:?} was refused: {refusal}");
            }
        };
        let mut written = Vec::new();
        for event in &events {
            let mut salt = [0; 32];
            salt.fill_with(|| u8::try_from(self.dice.below(256)).unwrap());
            let (data, private) = event.parts(salt).unwrap();
            written.push((event.kind(), data, private));
        }
        self.append(&StreamName::task(id), written).await;
        let task = events.iter().fold(task, |task, event: &TaskEvent| task::evolve(task, event)).unwrap();
        self.tasks.insert(id, task);
        true
    }

    fn team_of(&self, id: TaskId) -> &'static str {
        let team = &self.tasks[&id].spec.team;
        TEAMS.into_iter().find(|known| known == team).unwrap()
    }

    /// The process dies here now and then; whoever takes the task up sees both streams.
    fn dies(&mut self, seen: &mut Seen) -> bool {
        let dies = self.dice.one_in(6);
        seen.crashes += u64::from(dies);
        dies
    }

    pub async fn step(&mut self, seen: &mut Seen) {
        match self.dice.below(100) {
            0..=7 => self.create().await,
            8..=79 => {
                let ids: Vec<_> = self.tasks.keys().copied().collect();
                if !ids.is_empty() {
                    let id = self.dice.of(&ids);
                    self.work_on(id, seen).await;
                }
            }
            80..=90 => self.pass_time(),
            91..=93 => self.set_plan(seen).await,
            94 => self.set_zone().await,
            _ => self.close(seen).await,
        }
    }

    async fn create(&mut self) {
        let open = self.tasks.values().filter(|task| next_step(task, self.now()) != Step::Rest).count();
        if open >= MOST_OPEN {
            return;
        }
        let owned = |name: Option<&str>| name.map(str::to_owned);
        let id = TaskId::from_uuid(Uuid::from_u128(u128::from(self.dice.next())));
        let project = self.dice.of(&PROJECTS);
        let workspace = self.dice.of(&[Workspace::Fresh, Workspace::Same]);
        let spec = TaskSpec {
            repo: RepoRef::parse("acme/api", "github").unwrap(),
            task: "Mend it".to_owned(),
            model: self.dice.of(&MODELS).to_owned(),
            harness: Harness::Builtin,
            command: Vec::new(),
            retry: self.dice.one_in(2).then_some(Attempts { most: 2, workspace }),
            team: self.dice.of(&TEAMS).to_owned(),
            project: owned(project),
            environment: owned(project.and(self.dice.of(&[None, Some("e")]))),
            task_type: owned(self.dice.of(&[None, Some("t")])),
            customer: owned(self.dice.of(&CUSTOMERS)),
            budget: Budget::default(),
            base: None,
            branch: "orchestra/mend".to_owned(),
            further: Vec::new(),
            pull_request: None,
            campaign: None,
            image: "default".to_owned(),
            egress: Vec::new(),
            timeout_seconds: 86_000,
            metadata: serde_json::Map::new(),
            request_hash: None,
            caller_brings_model_key: false,
            caller_brings_git_token: false,
        };
        self.ask_task(id, Command::Create(Box::new(spec))).await;
    }

    /// Does the task's next step. Answers whether there was one.
    async fn work_on(&mut self, id: TaskId, seen: &mut Seen) -> bool {
        let (now, task) = (self.now(), &self.tasks[&id]);
        let step = next_step(task, now);
        let (over, asks) = (step == Step::Rest, matches!(step, Step::AskModel(_) | Step::AbandonModel(_)));
        let failed = task.current().is_some_and(|attempt| attempt.failure.is_some());
        if !over && !asks && self.dice.one_in(40) && !self.tasks[&id].cancel_requested {
            return self.ask_task(id, Command::Cancel { reason: None }).await;
        }
        let (succeeded, erased) = (task_succeeded(&self.tasks[&id]), self.erased.contains(&id));
        let works = matches!(step, Step::CallTool(_) | Step::RunTool(_) | Step::Commit(_));
        if works && !failed && self.dice.one_in(4) {
            let code = self.dice.of(&[FailureCode::ModelOverloaded, FailureCode::NothingToPush, FailureCode::Internal]);
            let failure = failure(code).with_retryable(true);
            return self.ask_task(id, Command::RecordFailure { failure, then: Then::GiveUp }).await;
        }
        let oid = |digit: &str| CommitId::try_from(digit.repeat(40)).unwrap();
        let command = match step {
            Step::Rest if !succeeded && !erased && self.dice.one_in(8) => Command::Retry,
            Step::Rest if !erased && self.dice.one_in(6) => return self.erase(id, seen).await,
            Step::Rest | Step::WaitUntil(_) => return false,
            Step::WaitForClaim => Command::Claim { node: "n".to_owned() },
            Step::Begin => Command::Begin { now, delivers: true },
            Step::Clone(repo) => {
                let sandbox = SandboxId::from_uuid(Uuid::from_u128(u128::from(self.dice.next())));
                Command::RecordClone { repo, base: "main".to_owned(), commit: oid("a"), sandbox, setup: false }
            }
            Step::StartSandbox(sandbox) => Command::RecordSandbox { sandbox, start_ms: 1, image_digest: None },
            Step::ReserveModel => return self.reserve(id, seen).await,
            Step::AskModel(open) => return self.ask_model(id, &open, seen).await,
            Step::AbandonModel(open) => return self.ask_model(id, &open, seen).await,
            Step::CallTool(tool) => Command::CallTool { tool_call: tool.id },
            Step::RunTool(tool) | Step::InterruptTool(tool) => Command::RecordTool {
                tool_call: tool.id,
                outcome: ToolOutcome::Ok,
                output: Content::Inline("ok".to_owned()),
                duration_ms: 1,
                omitted_bytes: 0,
            },
            Step::Commit(repo) => Command::RecordCommit {
                repo,
                commits: vec![(oid("c"), "Mend".to_owned())],
                tree: oid("d"),
                message: "Mend".to_owned(),
                stat: (1, 1, 0),
                diff: BlobRef { sha256: "0".repeat(64), bytes: 3 },
            },
            Step::StopSandbox(sandbox, reason) => Command::RecordSandboxStopped { sandbox, reason },
            Step::Push(repo) => Command::RecordPush { repo, outcome: PushOutcome::Pushed },
            Step::OpenPullRequest(repo) => {
                let opened = PullRequestOutcome::Omitted { reason: "there are none".to_owned() };
                Command::RecordPullRequest { repo, opened, notes: Vec::new() }
            }
            Step::LinkPullRequest(repo) => Command::RecordLink { repo, notes: Vec::new() },
            Step::Report(repo, _) => Command::RecordReport { repo, notes: Vec::new() },
            Step::NextAttempt(failure, _) => {
                let refund = self.refund(id, &Ending::Failed(failure), seen).await;
                if self.dies(seen) {
                    return true;
                }
                Command::NextAttempt { refund, until: now, wait_ms: 1 }
            }
            Step::Finish(ending) => {
                let refund = self.refund(id, &ending, seen).await;
                if self.dies(seen) {
                    return true;
                }
                Command::Finish { ending, refund }
            }
            other @ (Step::WaitForCredentials | Step::SetUp(_) | Step::BeginHarness(_) | Step::RunHarness) => {
                panic!("no such task: {other:?}")
            }
        };
        self.ask_task(id, command).await
    }

    /// Forgets the words of a task that is over; its sums stand.
    async fn erase(&mut self, id: TaskId, seen: &mut Seen) -> bool {
        let events = read_whole_stream(&*self.store, &StreamName::task(id)).await.unwrap().len() as u64;
        let command = Command::EraseContent { reason: ErasureReason::Request, events };
        self.ask_task(id, command).await;
        self.store.erase(&[StreamName::task(id)]).await.unwrap();
        self.erased.insert(id);
        seen.erased += 1;
        true
    }

    /// As the workshop refunds: in the ledger first, and the same again after a crash.
    async fn refund(&mut self, id: TaskId, ending: &Ending, seen: &mut Seen) -> NanoUsd {
        if *ending == Ending::Succeeded {
            return NanoUsd::ZERO;
        }
        let task = &self.tasks[&id];
        let known = self.refunds.get(&id).copied().unwrap_or_default().max(task.refunded);
        let (cost, usage) = task.current().map(|attempt| (attempt.cost, attempt.usage)).unwrap_or_default();
        let (to, left) = (task.refunded + cost, known.saturating_sub(task.refunded));
        let (now, team) = (self.now(), self.team_of(id));
        match ending {
            Ending::Failed(failure) if to > known && self.policy.refunds(failure.code) => {
                let (whose, reason) = (team.to_owned(), failure.code);
                let refund = ledger::Command::Refund { task: id, from: known, to, usage, reason, team: whose, now };
                let events = self.ask_ledger(team, refund).await.unwrap();
                seen.refunds += events.len() as u64;
                cost
            }
            Ending::Failed(_) | Ending::Cancelled | Ending::Succeeded => left,
        }
    }

    async fn reserve(&mut self, id: TaskId, seen: &mut Seen) -> bool {
        let (team, task) = (self.team_of(id), &self.tasks[&id]);
        let calls = task.current().map_or(0, |attempt| attempt.calls);
        let tokens = task.spent.usage.total() + task.spent.unconfirmed_tokens;
        let opening = Amount { nano_usd: task.spent.cost, tokens };
        let (path, model, attempt) = (Path::from(&*task.spec), task.spec.model.clone(), task.attempt);
        let input = self.dice.below(50_000);
        let quote = Quote {
            input_tokens: input,
            input_picos: u128::from(input) * 3_000_001,
            output_picos: 15_000_007,
            replies: 1,
            wanted_output: 1 + self.dice.below(30_000),
            least_output: 1,
        };
        // Derived, so that whoever comes after a crash finds the reservation that the first made.
        for number in 0..16_u128 {
            let place = (u128::from(attempt) << 64) | (u128::from(calls) << 32) | number;
            let call = CallId::from_uuid(Uuid::from_u128(id.uuid().as_u128() ^ (place << 8) ^ 1));
            let request = Reserve {
                call,
                task: id,
                path: path.clone(),
                own: Cap::default(),
                opening,
                campaign: None,
                model: model.clone(),
                price: "p".to_owned(),
                quote,
            };
            let asked = ledger::Command::Reserve(Box::new(request), self.now());
            match self.ask_ledger(team, asked).await {
                Ok(_) => {
                    if self.dies(seen) {
                        return true;
                    }
                    let reserved = self.ledgers[team].open_call(call).unwrap().clone();
                    let command = Command::ReserveModel {
                        call,
                        heard: 0,
                        reserved: reserved.reserved_nano_usd,
                        reserved_tokens: reserved.reserved_tokens,
                        max_output_tokens: reserved.max_output_tokens,
                    };
                    return self.ask_task(id, command).await;
                }
                Err(ledger::Refusal::CallEnded(_)) => {}
                Err(other) => panic!("{other}"),
            }
        }
        panic!("no id is left");
    }

    async fn ask_model(&mut self, id: TaskId, open: &OpenCall, seen: &mut Seen) -> bool {
        let (team, call) = (self.team_of(id), open.call);
        let taken_up = self.ends.contains_key(&call);
        if !taken_up {
            if self.dice.one_in(3) {
                let half = Amount {
                    nano_usd: NanoUsd::from_nanos(open.reserved.nanos() / 2 + 1),
                    tokens: open.reserved_tokens / 2 + 4,
                };
                self.ask_ledger(team, ledger::Command::Trim { call, to: half }).await.unwrap();
            }
            let bound = self.ledgers[team].open_call(call).unwrap().amount();
            let price = "p".to_owned();
            let charge = match self.dice.below(8) {
                0 => None,
                1 => {
                    seen.unconfirmed += 1;
                    let usage = Usage { input_tokens: bound.tokens, ..Usage::default() };
                    Some(Charge { usage, cost: bound.nano_usd, confirmed: false, price })
                }
                _ => {
                    let each = bound.tokens / 5;
                    let usage = Usage {
                        input_tokens: self.dice.below(each + 1),
                        output_tokens: self.dice.below(each + 1),
                        cache_read_tokens: self.dice.below(each + 1),
                        cache_write5m_tokens: self.dice.below(each + 1),
                        cache_write1h_tokens: self.dice.below(each + 1),
                    };
                    let cost = self.dice.nanos(bound.nano_usd.nanos() + 1);
                    Some(Charge { usage, cost, confirmed: true, price })
                }
            };
            let end = match charge.clone() {
                Some(Charge { usage, cost, confirmed, price }) => {
                    let today = self.today();
                    seen.late += u64::from(self.days[&call] < today);
                    ledger::Command::Settle(Box::new(Settle { call, usage, cost, confirmed, price }))
                }
                None => ledger::Command::Release(call),
            };
            self.ask_ledger(team, end).await.unwrap();
            self.ends.insert(call, charge);
            if self.dies(seen) {
                return true;
            }
        }
        let charge = self.ends[&call].clone();
        let cancelled = self.tasks[&id].cancel_requested;
        let command = match charge {
            Some(charge) if !taken_up && charge.confirmed && !cancelled => {
                let (content, stop_reason) = if self.dice.one_in(3) {
                    (Block::Text { text: Content::Inline("Done.".to_owned()) }, StopReason::EndTurn)
                } else {
                    let (id, name, input) = ("t".to_owned(), "bash".to_owned(), serde_json::json!({"command": "true"}));
                    (Block::ToolUse { id, name, input, malformed: None }, StopReason::ToolUse)
                };
                Command::RecordReply { call, charge, content: vec![content], stop_reason }
            }
            charge => {
                let code = self.dice.of(&[FailureCode::NetworkDropped, FailureCode::ModelAuth]);
                let until = self.now();
                let retry = Then::Retry { until, wait_ms: 1 };
                let then = if self.dice.one_in(3) { Then::GiveUp } else { retry };
                Command::RecordModelFailure { call, charge, failure: failure(code).with_retryable(true), then }
            }
        };
        self.ask_task(id, command).await
    }

    fn pass_time(&mut self) {
        let minutes = match self.dice.below(12) {
            0..=4 => self.dice.below(90),
            5..=8 => self.dice.below(14 * 60),
            9..=10 => self.dice.below(5 * 24 * 60),
            _ => 20 * 24 * 60,
        };
        let passed = SignedDuration::from_millis(i64::try_from(minutes * 60_000 + self.dice.below(60_000)).unwrap());
        *self.now.lock().unwrap() += passed;
    }

    async fn set_zone(&mut self) {
        let time_zone = self.dice.of(&[None, Some("Pacific/Kiritimati")]).map(str::to_owned);
        let (budget, team) = (ScopeBudget { time_zone, ..ScopeBudget::default() }, self.dice.of(&TEAMS));
        let scope = ledger::Scope::Team { team: team.to_owned() };
        self.ask_ledger(team, ledger::Command::SetBudget { scope, budget }).await.unwrap();
    }

    fn terms(&mut self) -> Terms {
        let price = |dice: &mut Dice| if dice.one_in(2) { dice.nanos(3_000_000_001) } else { NanoUsd::ZERO };
        let dice = &mut self.dice;
        Terms {
            mark_up_basis_points: Some(u32::try_from(dice.below(5_001)).unwrap()),
            per_task: price(dice),
            per_minute: price(dice),
            per_million_input: price(dice),
            per_million_output: price(dice),
            per_million_cache_read: price(dice),
            per_million_cache_write: price(dice),
            minimum: if dice.one_in(2) { NanoUsd::from_nanos(20_000_000_000) } else { NanoUsd::ZERO },
        }
    }

    async fn set_plan(&mut self, seen: &mut Seen) {
        let days = i64::try_from(self.dice.below(60)).unwrap() - 40;
        let effective_from = self.today().checked_add(days.days()).unwrap();
        let mut overrides = Vec::new();
        for (customer, project) in [(Some("Acme"), None), (None, Some("p")), (Some("Acme"), Some("p"))] {
            if self.dice.one_in(3) {
                let owned = |name: Option<&str>| name.map(str::to_owned);
                let terms = self.terms();
                overrides.push(Override { customer: owned(customer), project: owned(project), terms });
            }
        }
        let plan = Plan { effective_from, currency: Currency::Usd, terms: self.terms(), overrides };
        let team = self.dice.of(&TEAMS);
        match self.desk.set_plan(team, plan, Actor::system("test")).await {
            Ok(_) => seen.plans += 1,
            Err(BillingError::Refused(billing::Refusal::PlanTooEarly(_))) => {}
            Err(other) => panic!("{other}"),
        }
    }

    /// Closes the month that is next, if it is over; now and then only begins to.
    async fn close(&mut self, seen: &mut Seen) {
        let team = self.dice.of(&TEAMS);
        self.caught_up().await;
        let billing = self.read.billing(team.to_owned()).await.unwrap();
        let first = self.read.first_period(team.to_owned()).await.unwrap();
        let Some(due) = billing.cut_off.map(Month::next).or(first) else { return };
        if billing.closing.is_none() && self.dice.one_in(3) {
            let command = billing::Command::CutOff { period: due, today: self.today(), earliest: first };
            let Ok(events) = billing::decide(&billing, command) else { return };
            let data = events.iter().map(|event| (event.kind(), event.data().unwrap(), None)).collect();
            return self.append(&StreamName::billing(team).unwrap(), data).await;
        }
        let due = billing.closing.map_or(due, |closing| closing.period);
        seen.resumed += u64::from(billing.closing.is_some());
        match self.desk.close_period(team, due, Actor::system("test")).await {
            Ok(closed) => {
                self.caught_up().await;
                let bill = self.read.invoice(team.to_owned(), due).await.unwrap().unwrap();
                self.closed.insert((team.to_owned(), due), Kept { closed, lines: bill.numbered().collect() });
            }
            Err(BillingError::Refused(billing::Refusal::NotEnded(_))) => {}
            Err(other) => panic!("{other}"),
        }
    }

    async fn caught_up(&self) {
        let head = self.store.head().await.unwrap();
        self.read.wait_for(head, PATIENCE).await.unwrap();
    }

    /// The lines as they were written down when the month was closed.
    pub async fn written_lines(&self, team: &str, period: Month) -> Vec<NumberedLine> {
        let log = read_whole_stream(&*self.store, &StreamName::billing(team).unwrap()).await.unwrap();
        let lines = |event| match event {
            BillingEvent::InvoiceReady(ready) if ready.period == period => ready.lines,
            _ => Vec::new(),
        };
        log.iter().flat_map(|envelope| lines(BillingEvent::decode(envelope).unwrap().unwrap())).collect()
    }

    /// Lets every task come to its end, and ends in the ledger what no task knows of.
    pub async fn come_to_rest(&mut self, seen: &mut Seen) {
        let ids: Vec<_> = self.tasks.keys().copied().collect();
        for id in ids {
            while next_step(&self.tasks[&id], self.now()) != Step::Rest {
                self.work_on(id, seen).await;
            }
        }
        for team in TEAMS {
            let open: Vec<_> = self.ledgers[team].open_calls().map(|reserved| reserved.call).collect();
            for call in open {
                self.ask_ledger(team, ledger::Command::Release(call)).await.unwrap();
            }
        }
        self.caught_up().await;
    }
}
