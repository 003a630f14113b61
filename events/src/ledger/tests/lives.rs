//! Ten thousand random lives of a ledger, each held against an audit that shares no code with it.

use jiff::SignedDuration;

use super::*;

const SCHEDULES: u64 = 10_000;
const STEPS: usize = 45;
const TASKS: u128 = 5;
const CAMPAIGNS: [u128; 2] = [1, 2];
/// Moments shortly before something happens to the calendar somewhere.
const STARTS: [&str; 8] = [
    "2026-03-28T20:00:00Z",
    "2026-10-24T20:00:00Z",
    "2026-11-01T03:00:00Z",
    "2026-03-08T05:00:00Z",
    "2026-12-31T08:00:00Z",
    "2028-02-28T20:00:00Z",
    "2026-11-30T21:30:00Z",
    "2026-11-22T12:00:00Z",
];
const SCOPES: [&str; 6] =
    ["team:a", "project:a/p", "project:a/q", "environment:a/p/e", "task-type:a/t", "task-type:a/u"];

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

    fn one_in(&mut self, many: u64) -> bool {
        self.below(many) == 0
    }

    fn of<T: Copy>(&mut self, from: &[T]) -> T {
        from[usize::try_from(self.below(from.len() as u64)).unwrap()]
    }
}

/// What came of the schedules, so that none of it is tested in vain.
#[derive(Debug, Default)]
struct Seen {
    granted: u64,
    cut: u64,
    refused: u64,
    waits: u64,
    crashes: u64,
    closed: u64,
    announced: u64,
    reopened: u64,
    overruns: u64,
    refused_by_campaign: u64,
    forgotten: u64,
}

struct Life {
    ledger: Ledger,
    dice: Dice,
    /// What each task's own stream says that it has spent.
    spent: [Amount; TASKS as usize],
    /// What each task's own stream says that was refunded.
    refunded: [NanoUsd; TASKS as usize],
    calls: u128,
    ends: Vec<u128>,
    /// Whether calls of this life may cost more than was set aside for them.
    overruns: bool,
    closed: jiff::civil::Date,
}

impl Life {
    fn new(seed: u64) -> Self {
        let mut dice = Dice(seed);
        let ledger = Ledger::new(dice.of(&STARTS));
        let overruns = dice.one_in(8);
        let closed = ledger.now.to_zoned(TimeZone::UTC).date();
        let mut life = Self {
            ledger,
            dice,
            spent: [Amount::ZERO; TASKS as usize],
            refunded: [NanoUsd::ZERO; TASKS as usize],
            calls: 0,
            ends: Vec::new(),
            overruns,
            closed,
        };
        for _ in 0..life.dice.below(5) {
            life.set_budget();
        }
        for number in CAMPAIGNS {
            let cap = life.random_cap(10_000);
            let day = life.closed;
            life.ledger.ask(Command::OpenCampaign { campaign: campaign(number), cap, day }).unwrap();
        }
        life
    }

    fn step(&mut self, seen: &mut Seen) {
        match self.dice.below(100) {
            0..=37 => self.reserve(seen),
            38..=45 => self.trim(),
            46..=67 => self.settle(seen),
            68..=73 => self.release(),
            74..=76 => self.refund(),
            77..=82 => self.set_budget(),
            83..=94 => self.pass_time(seen),
            _ => self.crash(seen),
        }
    }

    fn random_cap(&mut self, scale: u64) -> Cap {
        let nanos = (!self.dice.one_in(3)).then(|| i64::try_from(self.dice.below(scale * 3)).unwrap());
        let tokens = self.dice.one_in(3).then(|| self.dice.below(scale));
        if self.dice.one_in(3) { Cap::default() } else { cap(nanos, tokens) }
    }

    fn set_budget(&mut self) {
        let of = self.dice.of(&SCOPES);
        let budget = Budget {
            per_task: self.random_cap(4_000),
            per_day: self.random_cap(8_000),
            per_month: self.random_cap(20_000),
            time_zone: self.dice.one_in(2).then(|| self.dice.of(&ZONES).to_owned()),
        };
        self.ledger.budget(of, budget);
    }

    /// Two tasks share a campaign, one has another to itself, two have none.
    fn campaign(of: u128) -> Option<CampaignId> {
        match of {
            2 | 3 => Some(campaign(CAMPAIGNS[0])),
            4 => Some(campaign(CAMPAIGNS[1])),
            _ => None,
        }
    }

    fn path(of: u128) -> Path {
        let name = |name: &str| Some(name.to_owned());
        match of {
            0 => Path::team("a"),
            1 => Path { project: name("p"), task_type: name("t"), ..Path::team("a") },
            2 => Path { project: name("p"), environment: name("e"), task_type: name("u"), ..Path::team("a") },
            3 => Path { project: name("q"), ..Path::team("a") },
            _ => Path { environment: name("e"), task_type: name("t"), ..Path::team("a") },
        }
    }

    fn open(&mut self) -> Option<Reserved> {
        let open: Vec<_> = self.ledger.state.open_calls().collect();
        if open.is_empty() { None } else { Some(self.dice.of(&open).clone()) }
    }

    fn reserve(&mut self, seen: &mut Seen) {
        // Now and then a call is asked for again.
        let number = if self.calls > 0 && self.dice.one_in(12) {
            u128::from(self.dice.below(u64::try_from(self.calls).unwrap())) + 1
        } else {
            self.calls += 1;
            self.calls
        };
        let of = u128::from(self.dice.below(u64::try_from(TASKS).unwrap()));
        let input = self.dice.below(1_500);
        let quote = Quote {
            input_tokens: input,
            input_picos: u128::from(input) * u128::from(self.dice.below(4_000)),
            output_picos: self.dice.below(6_000),
            replies: 1 + self.dice.below(2),
            wanted_output: 1 + self.dice.below(1_500),
            least_output: self.dice.below(300),
        };
        let stood = self.ledger.state.open_call(call(number)).cloned();
        let known = self.ledger.state.task(task(of)).is_some();
        let own = if of == 1 { cap(Some(9_000), Some(9_000)) } else { Cap::default() };
        let request = Reserve {
            call: call(number),
            task: task(of),
            path: Self::path(of),
            own,
            opening: self.spent[usize::try_from(of).unwrap()],
            campaign: Self::campaign(of),
            model: "m".to_owned(),
            price: "p".to_owned(),
            quote,
        };
        let open = self.ledger.state.open_calls().count();
        match self.ledger.ask(Command::Reserve(Box::new(request), self.ledger.now)) {
            Ok(events) if events.is_empty() => assert!(stood.is_some()),
            Ok(_) => {
                let reserved = self.ledger.state.open_call(call(number)).expect("it is reserved").clone();
                assert_eq!(reserved.reserved_nano_usd, quote.cost(reserved.max_output_tokens));
                assert_eq!(reserved.reserved_tokens, quote.tokens(reserved.max_output_tokens));
                seen.granted += 1;
                seen.cut += u64::from(reserved.max_output_tokens < quote.wanted_output);
                seen.reopened += u64::from(!known && !reserved.opening.is_zero());
            }
            Err(Refusal::CallEnded(_)) => assert!(self.ends.contains(&number)),
            // The account was forgotten: only once nothing was heard of the campaign for two months.
            Err(Refusal::NoSuchCampaign(_)) => seen.forgotten += 1,
            Err(Refusal::Exhausted { exhausted, .. }) if exhausted.period == Period::Campaign => {
                assert!(exhausted.scope.starts_with("campaign:"), "{exhausted}");
                seen.refused_by_campaign += 1;
            }
            Err(Refusal::Exhausted { waits_for, .. }) => {
                assert!(open > 0 || !waits_for, "nothing to wait for");
                seen.refused += 1;
                seen.waits += u64::from(waits_for);
            }
            Err(other) => panic!("{other}"),
        }
    }

    fn trim(&mut self) {
        let Some(reserved) = self.open() else { return };
        let part = |dice: &mut Dice, whole: u64| dice.below(whole + whole / 4 + 1);
        let nanos = part(&mut self.dice, u64::try_from(reserved.reserved_nano_usd.nanos()).unwrap());
        let to = Amount {
            nano_usd: usd(i64::try_from(nanos).unwrap()),
            tokens: part(&mut self.dice, reserved.reserved_tokens),
        };
        self.ledger.ask(Command::Trim { call: reserved.call, to }).unwrap();
    }

    fn end_of(&mut self, reserved: &Reserved, confirmed: bool, overrun: bool) -> Command {
        let bound = reserved.amount();
        let tokens = if !confirmed { bound.tokens } else { self.dice.below(bound.tokens + 1) };
        let nanos = u64::try_from(bound.nano_usd.nanos()).unwrap();
        let mut nanos = if !confirmed { nanos } else { self.dice.below(nanos + 1) };
        if overrun {
            nanos = nanos * 2 + 100;
        }
        let input = self.dice.below(tokens + 1);
        let usage = Usage { input_tokens: input, output_tokens: tokens - input, ..Usage::default() };
        let cost = usd(i64::try_from(nanos).unwrap());
        let settle = Settle { call: reserved.call, usage, cost, confirmed, price: "p".to_owned() };
        Command::Settle(Box::new(settle))
    }

    fn pay(&mut self, reserved: &Reserved, command: Command, seen: &mut Seen) {
        let Command::Settle(settle) = &command else { panic!("{command:?}") };
        let (cost, number) = (Amount { nano_usd: settle.cost, tokens: settle.usage.total() }, reserved.call);
        let events = self.ledger.ask(command).unwrap();
        seen.announced += events.len() as u64 - 1;
        self.spent[usize::try_from(reserved.task.uuid().as_u128()).unwrap()] += cost;
        self.ends.push(number.uuid().as_u128());
    }

    fn settle(&mut self, seen: &mut Seen) {
        if self.dice.one_in(10) && !self.ends.is_empty() {
            let again = self.dice.of(&self.ends);
            assert_eq!(self.ledger.settle(again, 1), Ok(vec![]));
            return;
        }
        let Some(reserved) = self.open() else {
            let never = self.calls + 1_000;
            assert_eq!(self.ledger.settle(never, 1), Err(Refusal::NoSuchCall(call(never))));
            return;
        };
        let overrun = self.overruns && self.dice.one_in(5);
        seen.overruns += u64::from(overrun);
        let confirmed = !self.dice.one_in(8);
        let command = self.end_of(&reserved, confirmed, overrun);
        self.pay(&reserved, command, seen);
    }

    fn release(&mut self) {
        let Some(reserved) = self.open() else { return };
        self.ledger.ask(Command::Release(reserved.call)).unwrap();
        self.ends.push(reserved.call.uuid().as_u128());
    }

    fn refund(&mut self) {
        let of = self.dice.below(u64::try_from(TASKS).unwrap());
        let of = usize::try_from(of).unwrap();
        // What the task was charged and nobody has reversed yet: the caller knows that from the task's stream.
        if self.ledger.state.task(task(of as u128)).is_none() {
            return;
        }
        let nanos = self.dice.below(u64::try_from(self.spent[of].nano_usd.nanos()).unwrap() + 1);
        let nano_usd = usd(i64::try_from(nanos).unwrap());
        let before: Vec<_> = self.ledger.state.windows().map(|(.., spent, held)| (spent, held)).collect();
        let from = self.refunded[of];
        let refund = Command::Refund {
            task: task(of as u128),
            from,
            to: from + nano_usd,
            usage: Usage::default(),
            reason: FailureCode::ModelOverloaded,
            team: "a".to_owned(),
            now: self.ledger.now,
        };
        match self.ledger.ask(refund) {
            // Once in a while the task's own stream is behind, as after a crash: it asks again for what it has.
            Ok(_) if self.dice.one_in(8) => {}
            Ok(_) => self.refunded[of] = from + nano_usd,
            Err(Refusal::RefundTooLarge { .. }) => {}
            Err(other) => panic!("{other}"),
        }
        let after: Vec<_> = self.ledger.state.windows().map(|(.., spent, held)| (spent, held)).collect();
        assert_eq!(before, after, "a refund moves no window");
    }

    fn pass_time(&mut self, seen: &mut Seen) {
        let minutes = match self.dice.below(20) {
            0..=8 => i64::try_from(self.dice.below(90)).unwrap(),
            9..=14 => i64::try_from(self.dice.below(10 * 60)).unwrap(),
            15..=17 => i64::try_from(self.dice.below(4 * 24 * 60)).unwrap(),
            18 => 40 * 24 * 60,
            _ => -i64::try_from(self.dice.below(40 * 60)).unwrap(),
        };
        self.ledger.now += SignedDuration::from_mins(minutes);
        let today = self.ledger.now.to_zoned(TimeZone::UTC).date();
        if today > self.closed && !self.dice.one_in(4) {
            let before = self.ledger.state.clone();
            let closed = self.ledger.ask(Command::CloseDay(self.closed)).unwrap();
            if !closed.is_empty() {
                assert_eq!(State { closed: before.closed, ..self.ledger.state.clone() }, before);
                seen.closed += 1;
            }
            self.closed = today;
        }
    }

    /// The process is gone, and so is the memory of it. The next one folds, and ends what nobody will end.
    fn crash(&mut self, seen: &mut Seen) {
        seen.crashes += 1;
        let folded = self.ledger.refolded();
        assert_eq!(folded, self.ledger.state, "a fold from the last day's close is the live state");
        let whole = self.ledger.log.iter().fold(State::default(), evolve);
        assert_eq!(whole, folded, "and so is one from the beginning");
        self.ledger.state = folded;
        for reserved in self.ledger.state.open_calls().cloned().collect::<Vec<_>>() {
            match self.dice.below(3) {
                0 => {
                    let command = self.end_of(&reserved, false, false);
                    self.pay(&reserved, command, seen);
                }
                1 => {
                    self.ledger.ask(Command::Release(reserved.call)).unwrap();
                    self.ends.push(reserved.call.uuid().as_u128());
                }
                // Another one's, who is still at it.
                _ => {}
            }
        }
    }
}

#[test]
fn no_schedule_overshoots() {
    let mut seen = Seen::default();
    for seed in 0..SCHEDULES {
        let mut life = Life::new(seed);
        let close = seed % 8 == 0;
        for _ in 0..STEPS {
            life.step(&mut seen);
            if close {
                life.ledger.audit.agrees_with(&life.ledger.state).unwrap_or_else(|fault| panic!("{seed}: {fault}"));
            }
        }
        life.ledger.audit.agrees_with(&life.ledger.state).unwrap_or_else(|fault| panic!("{seed}: {fault}"));
        let totals =
            std::mem::take(&mut life.ledger.audit).finish().unwrap_or_else(|violation| panic!("{seed}: {violation}"));
        // The ledger's sums are the task streams' sums.
        for (number, spent) in life.spent.iter().enumerate() {
            let counted = totals.tasks.get(&task(number as u128)).map(|total| total.settled).unwrap_or_default();
            assert_eq!(counted, *spent, "{seed}");
        }
        assert!(life.overruns || totals.overruns == 0, "{seed}");
    }
    println!("{seen:?}");
    let Seen {
        granted,
        cut,
        refused,
        waits,
        crashes,
        closed,
        announced,
        reopened,
        overruns,
        refused_by_campaign,
        forgotten,
    } = seen;
    for (what, times) in [
        ("granted", granted),
        ("cut", cut),
        ("refused", refused),
        ("would fit later", waits),
        ("crashes", crashes),
        ("days closed", closed),
        ("announced", announced),
        ("tasks known only by their own streams", reopened),
        ("overruns", overruns),
        ("refused by a campaign", refused_by_campaign),
    ] {
        assert!(times > SCHEDULES / 20, "{what}: {times}");
    }
    assert!(forgotten > 10, "accounts forgotten: {forgotten}");
}
