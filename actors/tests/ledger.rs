//! A team's ledger over a real store, with many who want its money at once, with actors that die, with another node on
//! the same stream. The last word is always the audit's, which reads nothing but the log.

#![allow(clippy::unwrap_used)]

use std::collections::HashSet;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use async_trait::async_trait;
use jiff::Timestamp;
use orchestra_actors::ledger::Settings;
use orchestra_actors::{LedgerError, Ledgers, Settlement};
use orchestra_events::ledger::audit::{Totals, check};
use orchestra_events::ledger::state::ENDED_KEPT;
use orchestra_events::ledger::{Amount, Budget, Cap, LedgerEvent, Path, Quote, Refusal, Reserve, Reserved, Settle};
use orchestra_events::store::memory::MemoryStore;
use orchestra_events::store::read_whole_stream;
use orchestra_events::store::sqlite::SqliteStore;
use orchestra_events::store::wrapped::Wrapped;
use orchestra_events::task::conversation::Usage;
use orchestra_events::{
    Actor, Appended, CallId, EventStore, Expected, FailureCode, NanoUsd, NewEvent, StoreError, StreamName, TaskId,
};
use tokio::task::JoinSet;
use uuid::Uuid;

const CALLERS: u128 = 64;

fn call(number: u128) -> CallId {
    CallId::from_uuid(Uuid::from_u128(number))
}

fn task(number: u128) -> TaskId {
    TaskId::from_uuid(Uuid::from_u128(number))
}

fn usd(nanos: i64) -> NanoUsd {
    NanoUsd::from_nanos(nanos)
}

/// A call of a nano-dollar per token: so many in, so many out, and no fewer out than half.
fn request(number: u128, of: u128, input: u64, output: u64) -> Reserve {
    Reserve {
        call: call(number),
        task: task(of),
        path: Path { project: Some("p".to_owned()), ..Path::team("a") },
        own: Cap::default(),
        opening: Amount::ZERO,
        campaign: None,
        model: "m".to_owned(),
        price: "p".to_owned(),
        quote: Quote {
            input_tokens: input,
            input_picos: u128::from(input) * 1_000,
            output_picos: 1_000,
            replies: 1,
            wanted_output: output,
            least_output: output / 2,
        },
    }
}

fn payment(number: u128, tokens: u64) -> Settle {
    let usage = Usage { output_tokens: tokens, ..Usage::default() };
    let cost = usd(i64::try_from(tokens).unwrap());
    Settle { call: call(number), usage, cost, confirmed: true, price: "p".to_owned() }
}

fn caps(per_day: i64) -> Budget {
    let per_day = Cap { max_nano_usd: Some(usd(per_day)), max_tokens: None };
    Budget { per_day, ..Budget::default() }
}

async fn cap_day(ledgers: &Ledgers, nanos: i64) {
    ledgers.set_budget("team:a".parse().unwrap(), caps(nanos), Actor::system("test")).await.unwrap();
}

fn impatient(wait: Duration) -> Settings {
    Settings { reserve_wait: wait, ..Settings::default() }
}

/// Long enough that a test which needs it fails by its own time-out.
const PATIENT: Duration = Duration::from_secs(120);

async fn log_of(store: &dyn EventStore) -> Vec<LedgerEvent> {
    let envelopes = read_whole_stream(store, &StreamName::ledger("a").unwrap()).await.unwrap();
    envelopes.iter().map(|envelope| LedgerEvent::decode(envelope).unwrap().unwrap()).collect()
}

async fn audited(store: &dyn EventStore) -> Totals {
    check(&log_of(store).await).unwrap_or_else(|violation| panic!("{violation}"))
}

fn kinds(log: &[LedgerEvent]) -> Vec<&'static str> {
    log.iter().map(LedgerEvent::kind).collect()
}

fn is_exhausted(answer: &Result<Reserved, LedgerError>) -> bool {
    matches!(answer, Err(LedgerError::Refused(Refusal::Exhausted { .. })))
}

/// One caller's calls, one after the other: reserved, trimmed perhaps, and ended in one way or another. Answers what it
/// believes to have paid.
async fn spend(ledgers: Ledgers, caller: u128, calls: u128) -> (u64, u64) {
    let (mut paid, mut refused) = (0, 0);
    for turn in 0..calls {
        let number = 1 + caller * 1_000 + turn;
        let wanted = 50 + u64::try_from((caller * 37 + turn * 11) % 90).unwrap();
        let reserved = match ledgers.reserve(request(number, caller % 8, 40, wanted)).await {
            Ok(reserved) => reserved,
            Err(LedgerError::Refused(Refusal::Exhausted { .. })) => {
                refused += 1;
                continue;
            }
            Err(other) => panic!("{other}"),
        };
        assert!(reserved.max_output_tokens <= wanted && reserved.max_output_tokens >= wanted / 2);
        let bound = reserved.reserved_tokens;
        match number % 5 {
            0 => ledgers.release("a", call(number)).await.unwrap(),
            1 => {
                let mut lost = payment(number, bound);
                lost.confirmed = false;
                ledgers.settle("a", lost).await.unwrap();
                paid += bound;
            }
            _ => {
                let to = Amount { nano_usd: usd(i64::try_from(bound - 5).unwrap()), tokens: bound - 5 };
                ledgers.trim("a", call(number), to).await.unwrap();
                ledgers.settle("a", payment(number, bound - 9)).await.unwrap();
                paid += bound - 9;
            }
        }
    }
    (paid, refused)
}

/// Everything that all callers together paid, and how often one was refused.
async fn spend_all(ledgers: &[Ledgers], calls: u128) -> (u64, u64) {
    let mut callers = JoinSet::new();
    for caller in 0..CALLERS {
        let ledgers = ledgers[usize::try_from(caller).unwrap() % ledgers.len()].clone();
        callers.spawn(spend(ledgers, caller, calls));
    }
    let mut all = (0, 0);
    while let Some(caller) = callers.join_next().await {
        let (paid, refused) = caller.unwrap();
        all = (all.0 + paid, all.1 + refused);
    }
    all
}

#[actix_rt::test]
async fn sixty_four_callers_do_not_overshoot_a_cap_that_bites() {
    const CAP: i64 = 40_000;
    let folder = tempfile::tempdir().unwrap();
    let store: Arc<dyn EventStore> = Arc::new(SqliteStore::open(folder.path().join("events.db")).unwrap());
    let ledgers = Ledgers::start_with(Arc::clone(&store), impatient(Duration::from_millis(20)));
    cap_day(&ledgers, CAP).await;
    let (paid, refused) = spend_all(std::slice::from_ref(&ledgers), 20).await;
    let totals = audited(&*store).await;
    assert_eq!((totals.settled.tokens, totals.open.len()), (paid, 0));
    assert_eq!(totals.settled.nano_usd, usd(i64::try_from(paid).unwrap()));
    assert!(refused > 0, "the cap bites");
    assert!(i64::try_from(paid).unwrap() > CAP - 200, "and is used: {paid}");
    assert!(totals.unconfirmed > 0 && totals.released > 0 && totals.overruns == 0);
    let view = ledgers.budget("team:a".parse().unwrap()).await.unwrap();
    assert_eq!((view.day.spent, view.day.reserved), (totals.settled, Amount::ZERO));
    assert_eq!(ledgers.budget("project:a/p".parse().unwrap()).await.unwrap().month.spent, totals.settled);
}

#[actix_rt::test]
async fn two_nodes_on_one_ledger_do_not_overshoot() {
    const CAP: i64 = 30_000;
    let store: Arc<dyn EventStore> = Arc::new(MemoryStore::new());
    let node = || Ledgers::start_with(Arc::clone(&store), impatient(Duration::from_millis(20)));
    let nodes = [node(), node()];
    cap_day(&nodes[0], CAP).await;
    let (paid, refused) = spend_all(&nodes, 10).await;
    let totals = audited(&*store).await;
    assert_eq!((totals.settled.tokens, totals.open.len()), (paid, 0));
    assert!(refused > 0 && i64::try_from(paid).unwrap() > CAP - 400, "{paid} paid, {refused} refused");
    // Both see the whole.
    for node in &nodes {
        node.release("a", call(1)).await.unwrap();
        let (_, reserved) = (node.open_calls("a").await.unwrap(), node.budgets("a").await.unwrap());
        assert_eq!(reserved.len(), 1);
    }
}

/// What the store does at the appends of these numbers.
struct Troubled {
    inner: MemoryStore,
    appends: AtomicU64,
    panics: HashSet<u64>,
    fails: HashSet<u64>,
    /// Panics after the batch was taken, so that nobody hears of it.
    deaf: HashSet<u64>,
}

impl Troubled {
    fn new(panics: &[u64], fails: &[u64], deaf: &[u64]) -> Arc<Self> {
        let set = |numbers: &[u64]| numbers.iter().copied().collect();
        let (panics, fails, deaf) = (set(panics), set(fails), set(deaf));
        Arc::new(Self { inner: MemoryStore::new(), appends: AtomicU64::new(0), panics, fails, deaf })
    }
}

#[async_trait]
impl Wrapped for Troubled {
    fn inner(&self) -> &dyn EventStore {
        &self.inner
    }

    async fn on_append(
        &self,
        stream: &StreamName,
        expected: Expected,
        events: Vec<NewEvent>,
    ) -> Result<Appended, StoreError> {
        let number = self.appends.fetch_add(1, Ordering::SeqCst);
        assert!(!self.panics.contains(&number), "the store breaks on purpose");
        if self.fails.contains(&number) {
            return Err(StoreError::Failed("the disk is full".to_owned()));
        }
        let appended = self.inner.append(stream, expected, events).await;
        assert!(!self.deaf.contains(&number), "the store breaks on purpose, too late");
        appended
    }
}

#[actix_rt::test]
async fn an_actor_that_dies_is_made_again_and_nothing_counts_twice() {
    const CAP: i64 = 20_000;
    let store = Troubled::new(&[3, 11], &[], &[7, 15]);
    let ledgers = Ledgers::start_with(store.clone(), impatient(Duration::from_millis(20)));
    cap_day(&ledgers, CAP).await;
    let (paid, refused) = spend_all(std::slice::from_ref(&ledgers), 10).await;
    assert!(store.appends.load(Ordering::SeqCst) > 16, "it has died four times");
    let totals = audited(&*store).await;
    assert_eq!((totals.settled.tokens, totals.open.len()), (paid, 0));
    assert!(refused > 0);
}

#[actix_rt::test]
async fn nothing_of_a_batch_that_the_store_did_not_take_counts() {
    let store = Troubled::new(&[], &[1], &[]);
    let ledgers = Ledgers::start(store.clone());
    cap_day(&ledgers, 100).await;
    let failed = ledgers.reserve(request(1, 1, 50, 50)).await;
    assert!(matches!(failed, Err(LedgerError::Store(StoreError::Failed(_)))), "{failed:?}");
    assert_eq!(ledgers.open_calls("a").await.unwrap(), []);
    assert_eq!(ledgers.reserve(request(1, 1, 50, 50)).await.unwrap().reserved_tokens, 100);
    assert_eq!(kinds(&log_of(&*store).await), ["budget-set", "reserved"]);
}

#[actix_rt::test]
async fn a_call_waits_for_those_under_way_and_for_nothing_else() {
    let store: Arc<dyn EventStore> = Arc::new(MemoryStore::new());
    let ledgers = Ledgers::start_with(Arc::clone(&store), impatient(PATIENT));
    cap_day(&ledgers, 100).await;
    ledgers.reserve(request(1, 1, 50, 50)).await.unwrap();
    // Nothing that could end makes room for this one: it is refused at once.
    assert!(is_exhausted(&ledgers.reserve(request(2, 2, 101, 2)).await));
    let waiting = {
        let ledgers = ledgers.clone();
        tokio::spawn(async move { ledgers.reserve(request(3, 2, 40, 40)).await })
    };
    // First come, first served: the second waits for the first too.
    let second = {
        let ledgers = ledgers.clone();
        tokio::spawn(async move { ledgers.reserve(request(4, 2, 10, 10)).await })
    };
    tokio::task::yield_now().await;
    ledgers.settle("a", payment(1, 20)).await.unwrap();
    assert_eq!(waiting.await.unwrap().unwrap().reserved_tokens, 80);
    ledgers.release("a", call(3)).await.unwrap();
    assert_eq!(second.await.unwrap().unwrap().reserved_tokens, 20);
    assert!(audited(&*store).await.overruns == 0);
}

#[actix_rt::test]
async fn a_call_waits_no_longer_than_it_is_worth() {
    let ledgers = Ledgers::start_with(Arc::new(MemoryStore::new()), impatient(Duration::from_millis(30)));
    cap_day(&ledgers, 100).await;
    ledgers.reserve(request(1, 1, 50, 50)).await.unwrap();
    let refused = ledgers.reserve(request(2, 2, 40, 40)).await;
    let Err(LedgerError::Refused(Refusal::Exhausted { exhausted, waits_for: true })) = refused else {
        panic!("{refused:?}")
    };
    assert_eq!(exhausted.scope, "team:a");
    let failure =
        orchestra_events::Failure::from(LedgerError::Refused(Refusal::Exhausted { exhausted, waits_for: true }));
    assert_eq!(failure.code, FailureCode::BudgetExceeded);
}

#[actix_rt::test]
async fn trims_are_written_only_when_somebody_needs_the_room() {
    let store: Arc<dyn EventStore> = Arc::new(MemoryStore::new());
    let ledgers = Ledgers::start_with(Arc::clone(&store), impatient(PATIENT));
    cap_day(&ledgers, 200).await;
    let to = |tokens: u64| Amount { nano_usd: usd(i64::try_from(tokens).unwrap()), tokens };
    ledgers.reserve(request(1, 1, 50, 50)).await.unwrap();
    ledgers.trim("a", call(1), to(60)).await.unwrap();
    ledgers.trim("a", call(1), to(70)).await.unwrap();
    ledgers.reserve(request(2, 1, 50, 50)).await.unwrap();
    assert_eq!(kinds(&log_of(&*store).await), ["budget-set", "reserved", "reserved"]);
    // This one would be refused.
    assert_eq!(ledgers.reserve(request(3, 1, 10, 20)).await.unwrap().reserved_tokens, 30);
    // This one waits until a call is trimmed.
    let waiting = {
        let ledgers = ledgers.clone();
        tokio::spawn(async move { ledgers.reserve(request(4, 1, 20, 20)).await })
    };
    tokio::task::yield_now().await;
    ledgers.trim("a", call(2), to(70)).await.unwrap();
    assert_eq!(waiting.await.unwrap().unwrap().reserved_tokens, 40);
    // One for a call that has ended is no error, one for a call that never was is.
    ledgers.release("a", call(4)).await.unwrap();
    ledgers.trim("a", call(4), to(1)).await.unwrap();
    assert!(matches!(ledgers.trim("a", call(5), to(1)).await, Err(LedgerError::Refused(Refusal::NoSuchCall(_)))));
    let expected = ["budget-set", "reserved", "reserved", "trimmed", "reserved", "trimmed", "reserved", "released"];
    assert_eq!(kinds(&log_of(&*store).await), expected);
    audited(&*store).await;
}

#[actix_rt::test]
async fn a_day_is_closed_by_the_next_and_the_next_process_begins_there() {
    let folder = tempfile::tempdir().unwrap();
    let store: Arc<dyn EventStore> = Arc::new(SqliteStore::open(folder.path().join("events.db")).unwrap());
    let now = Arc::new(Mutex::new("2026-11-22T22:30:00Z".parse::<Timestamp>().unwrap()));
    let settings = {
        let now = Arc::clone(&now);
        Settings { clock: Arc::new(move || *now.lock().unwrap()), ..Settings::default() }
    };
    let ledgers = Ledgers::start_with(Arc::clone(&store), settings.clone());
    let zurich = Budget { time_zone: Some("Europe/Zurich".to_owned()), ..caps(100) };
    ledgers.set_budget("team:a".parse().unwrap(), zurich, Actor::system("test")).await.unwrap();
    ledgers.reserve(request(1, 1, 30, 30)).await.unwrap();
    ledgers.reserve(request(2, 1, 20, 20)).await.unwrap();
    ledgers.settle("a", payment(1, 60)).await.unwrap();
    *now.lock().unwrap() = "2026-11-23T00:30:00Z".parse().unwrap();
    ledgers.reserve(request(3, 1, 25, 25)).await.unwrap();
    let log = log_of(&*store).await;
    assert_eq!(kinds(&log)[4..], ["threshold-reached", "day-closed", "reserved"]);
    let LedgerEvent::DayClosed(closed) = &log[5] else { panic!("{:?}", log[5]) };
    assert_eq!((closed.day.to_string(), closed.checkpoint.open.len()), ("2026-11-22".to_owned(), 1));
    // Another process, from the same disk.
    let next = Ledgers::start_with(Arc::clone(&store), settings);
    assert_eq!(next.open_calls("a").await.unwrap(), ledgers.open_calls("a").await.unwrap());
    let (before, after) = (ledgers.budgets("a").await.unwrap(), next.budgets("a").await.unwrap());
    assert_eq!(before, after);
    assert_eq!(after[0].day.reserved.tokens, 50);
    assert_eq!(after[0].day.resets_at, Some("2026-11-23T23:00:00Z".parse().unwrap()));
    assert_eq!((after[0].month.spent.tokens, after[0].month.reserved.tokens), (60, 90));
    // Settled after midnight, it counts to the day before.
    next.settle("a", payment(2, 40)).await.unwrap();
    assert_eq!(next.budgets("a").await.unwrap()[0].day.spent, Amount::ZERO);
    assert_eq!(next.teams().await.unwrap(), ["a"]);
    let totals = audited(&*store).await;
    assert_eq!((totals.settled.tokens, totals.open.len()), (100, 1));
}

#[actix_rt::test]
async fn an_end_that_was_long_ago_is_found_in_the_stream() {
    let store: Arc<dyn EventStore> = Arc::new(MemoryStore::new());
    let ledgers = Ledgers::start(Arc::clone(&store));
    let last = ENDED_KEPT as u128 + 3;
    for number in 1..=last {
        ledgers.reserve(request(number, 1, 1, 2)).await.unwrap();
        if number == 1 {
            ledgers.settle("a", payment(1, 3)).await.unwrap();
        } else {
            ledgers.release("a", call(number)).await.unwrap();
        }
    }
    let events = log_of(&*store).await.len();
    ledgers.settle("a", payment(1, 3)).await.unwrap();
    ledgers.release("a", call(2)).await.unwrap();
    assert_eq!(log_of(&*store).await.len(), events);
    let Some(Settlement::Settled(settled)) = ledgers.settlement_of("a", call(1)).await.unwrap() else {
        panic!("it was settled")
    };
    assert_eq!((settled.cost_nano_usd, settled.task), (usd(3), task(1)));
    assert_eq!(ledgers.settlement_of("a", call(2)).await.unwrap(), Some(Settlement::Released));
    assert_eq!(ledgers.settlement_of("a", call(last + 1)).await.unwrap(), None);
    let never = ledgers.settle("a", payment(last + 1, 3)).await;
    assert!(matches!(never, Err(LedgerError::Refused(Refusal::NoSuchCall(_)))), "{never:?}");
}

#[actix_rt::test]
async fn budgets_are_set_and_seen() {
    let ledgers = Ledgers::start(Arc::new(MemoryStore::new()));
    let lost = Budget { time_zone: Some("Europe/Atlantis".to_owned()), ..caps(100) };
    let refused = ledgers.set_budget("team:a".parse().unwrap(), lost, Actor::system("test")).await;
    assert!(matches!(refused, Err(LedgerError::Refused(Refusal::UnknownTimeZone(_)))), "{refused:?}");
    cap_day(&ledgers, 100).await;
    let path = Path::team("a");
    let quote = request(1, 1, 50, 100).quote;
    let fitted = ledgers.check(path.clone(), Cap::default(), quote).await.unwrap();
    assert_eq!(fitted.max_output_tokens, 50);
    let own = Cap { max_nano_usd: Some(usd(99)), max_tokens: None };
    let refused = ledgers.check(path, own, quote).await;
    assert!(matches!(refused, Err(LedgerError::Refused(Refusal::Exhausted { .. }))), "{refused:?}");
    assert!(matches!(ledgers.open_calls("no team").await, Err(LedgerError::Team(_))));
    // What was refunded is spent all the same.
    ledgers.reserve(request(1, 1, 50, 50)).await.unwrap();
    ledgers.settle("a", payment(1, 100)).await.unwrap();
    for _ in 0..2 {
        // Asked again after a crash, it is the same refund.
        ledgers.refund("a", task(1), usd(0), usd(100), Usage::default(), FailureCode::Internal).await.unwrap();
    }
    assert!(is_exhausted(&ledgers.reserve(request(2, 1, 1, 1)).await));
    let again = ledgers.refund("a", task(1), usd(100), usd(101), Usage::default(), FailureCode::Internal).await;
    assert!(matches!(again, Err(LedgerError::Refused(Refusal::RefundTooLarge { .. }))), "{again:?}");
}
