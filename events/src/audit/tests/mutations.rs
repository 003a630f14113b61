//! Ten thousand ways to tamper with an export: each is seen, and its place is named.

use std::collections::BTreeMap;
use std::num::NonZero;

use super::super::Kind;
use super::*;

const MUTATIONS: u64 = 10_000;
/// Events of the log: enough for several checkpoints and tasks, few enough for a debug build.
const EVENTS: usize = 48;

struct Mutated {
    what: &'static str,
    lines: Vec<Vec<u8>>,
    /// The place is a range between two signatures: no hash says more.
    rewritten: bool,
    /// The event was replaced together with its links, or its absence hidden: the next one shows it.
    relinked: bool,
}

fn mutate(log: &Log, good: &[Vec<u8>], seed: u64) -> Mutated {
    let mut dice = Dice(seed);
    let mut lines = good.to_vec();
    let (first, end) = (1, good.len() - 1);
    let events = end - first;
    let event = |dice: &mut Dice| first + dice.below(events);
    let mut rewritten = false;
    let mut relinked = false;
    let what = match seed % 16 {
        0..=3 => {
            // Every byte alike: long lines are hit more often.
            let bytes: usize = good.iter().map(Vec::len).sum();
            let (mut at, bit) = (dice.below(bytes), dice.below(8));
            let hit = lines.iter_mut().find(|line| {
                let here = at < line.len();
                at -= if here { 0 } else { line.len() };
                here
            });
            hit.unwrap()[at] ^= 1 << bit;
            "flip"
        }
        4 => {
            let which = [0, end, event(&mut dice)][dice.below(3)];
            let (at, bit) = (dice.below(lines[which].len()), dice.below(8));
            lines[which][at] ^= 1 << bit;
            "flip in header, end or links"
        }
        5 => {
            let from = event(&mut dice);
            lines.drain(from..(from + 1 + dice.below(4)).min(end));
            "drop"
        }
        6 => {
            let (one, other) = (event(&mut dice), event(&mut dice));
            lines.swap(one, if one == other { first + (one - first + 1) % events } else { other });
            "swap"
        }
        7 => {
            let (from, to) = (event(&mut dice), event(&mut dice));
            lines.insert(to, good[from].clone());
            "copy"
        }
        8 => {
            let at = event(&mut dice);
            let mut forged = Log { events: log.events[..at - first].to_vec() };
            for number in 0..=dice.below(3) {
                let stream = ["task-9", "ledger-web", "future-1"][dice.below(3)].parse().unwrap();
                forged.raw(&stream, "unheard-of", &format!("{{\"forged\":{number}}}"));
                lines.insert(at + number, line(forged.events.last().unwrap()));
            }
            "insert with good links"
        }
        9 => {
            let at = event(&mut dice);
            let mut forged = log.events[dice.below(events)].clone();
            forged.event.id = EventId(Uuid::from_u128(u128::from(dice.next())));
            forged.event.position = Position((at - first) as u64 + 1);
            lines.insert(at, line(&forged));
            "insert with wrong links"
        }
        10 => {
            let bytes = good.concat();
            let keep = dice.below(bytes.len());
            lines = bytes[..keep].split_inclusive(|byte| *byte == b'\n').map(<[u8]>::to_vec).collect();
            "truncate"
        }
        11 => {
            let from = event(&mut dice);
            lines.drain(from..end);
            "truncate before the end"
        }
        12 => {
            let foreign = log.lines(&other_key());
            lines[end].clone_from(&foreign[end]);
            if dice.below(2) == 0 {
                lines[0].clone_from(&foreign[0]);
            }
            "sign with another key"
        }
        13 => {
            let at = event(&mut dice);
            let mut forged = log.clone();
            let number = at - first;
            forged.events[number].event.data = Json::stored(format!("{{\"forged\":{}}}", dice.next()));
            match dice.below(3) {
                0 => {
                    // All that follows, and the true key's signature stays below it.
                    forged.relink(number as u64 + 1);
                    let signed = lines.pop().unwrap();
                    lines = forged.lines(&key());
                    *lines.last_mut().unwrap() = signed;
                    rewritten = true;
                    "write all that follows anew"
                }
                1 => {
                    forged.relink(number as u64 + 1);
                    lines = forged.lines(&other_key());
                    lines[0].clone_from(&good[0]);
                    if number == 0 {
                        lines[0] = Header::new(forged.link_of(1), public(&key())).line();
                    }
                    rewritten = true;
                    "write all that follows anew and sign with another key"
                }
                _ => {
                    forged.events.truncate(number + 1);
                    forged.relink(number as u64 + 1);
                    lines[at] = line(&forged.events[number]);
                    relinked = true;
                    "replace with its links"
                }
            }
        }
        14 => {
            let at = event(&mut dice);
            let text = String::from_utf8(lines[at].clone()).unwrap();
            let changed = match dice.below(4) {
                0 => text.replacen("\",\"", "\", \"", 1),
                1 => text.replacen("\"revision\":", "\"revision\":1", 1),
                2 => text.replacen("\"position\":", "\"position\":1", 1),
                _ => text.replacen("{\"links\"", "{\"more\":1,\"links\"", 1),
            };
            lines[at] = changed.into_bytes();
            "spell otherwise"
        }
        _ => {
            // Dropped, and the numbers of those that follow closed up.
            let at = event(&mut dice);
            let gone = log.events[at - first].event.stream.clone();
            lines.remove(at);
            for (line_of, linked) in lines[at..].iter_mut().zip(&log.events[at..]) {
                let mut linked = linked.clone();
                linked.event.position.0 -= 1;
                if linked.event.stream == gone {
                    linked.event.revision.0 -= 1;
                }
                *line_of = line(&linked);
            }
            relinked = true;
            "drop and close up the numbers"
        }
    };
    Mutated { what, lines, rewritten, relinked }
}

/// The first line that is another one, counted as places are.
fn first_difference(good: &[Vec<u8>], lines: &[Vec<u8>]) -> u64 {
    let bytes = lines.concat();
    let lines: Vec<&[u8]> = bytes.split_inclusive(|byte| *byte == b'\n').collect();
    let same = good.iter().zip(&lines).take_while(|(good, line)| good == *line).count();
    same as u64
}

fn judge(log: &Log, good: &[Vec<u8>], seed: u64) -> Option<(&'static str, Kind)> {
    let mutated = mutate(log, good, seed);
    if mutated.lines.concat() == good.concat() {
        return None;
    }
    let place = first_difference(good, &mutated.lines);
    let what = mutated.what;
    let Some(broken) = check(&mutated.lines, &pinned()).broken else {
        panic!("seed {seed}, {what} at {place}: nothing was seen");
    };
    let named = broken.from <= place && place <= broken.to;
    let right = if mutated.rewritten {
        // Between two signatures, or at the first signature that is not the key's.
        let signature = matches!(broken.kind, Kind::OtherKey | Kind::BadSignature);
        (named && matches!(broken.kind, Kind::Rewritten | Kind::Altered)) || (signature && place > broken.vouched)
    } else if mutated.relinked {
        // After the last event there is none to show it: the signed end does, for all since the checkpoint before.
        let by_signature = named && broken.kind == Kind::Rewritten;
        by_signature || (broken.from.saturating_sub(1)..=broken.to).contains(&place) && broken.to - broken.from <= 1
    } else {
        named && broken.from == broken.to
    };
    assert!(right, "seed {seed}, {what} at {place}: {broken}");
    Some((what, broken.kind))
}

#[test]
fn every_mutation_is_seen_and_its_place_is_named() {
    let log = sample(EVENTS);
    let good = log.lines(&key());
    assert!(check(&good, &pinned()).holds());
    let workers = std::thread::available_parallelism().map_or(1, NonZero::get) as u64;
    let seen: Vec<BTreeMap<_, u64>> = std::thread::scope(|scope| {
        let work = |worker| {
            let (log, good) = (&log, &good);
            scope.spawn(move || {
                let mut seen = BTreeMap::new();
                for seed in (worker..MUTATIONS).step_by(usize::try_from(workers).unwrap()) {
                    if let Some((what, kind)) = judge(log, good, seed) {
                        *seen.entry((what, kind.as_str())).or_default() += 1;
                    }
                }
                seen
            })
        };
        let all: Vec<_> = (0..workers).map(work).collect();
        all.into_iter().map(|worker| worker.join().unwrap()).collect()
    });
    let mut total: BTreeMap<(&str, &str), u64> = BTreeMap::new();
    for (kind, count) in seen.into_iter().flatten() {
        *total.entry(kind).or_default() += count;
    }
    let judged: u64 = total.values().sum();
    eprintln!("{judged} mutations: {total:#?}");
    assert!(judged >= MUTATIONS * 99 / 100, "nearly every mutation changes something: {judged}");
    let count = |kind: Kind| {
        total.iter().filter(|((_, named), _)| *named == kind.as_str()).map(|(_, count)| count).sum::<u64>()
    };
    for kind in [
        Kind::Altered,
        Kind::Dropped,
        Kind::Inserted,
        Kind::Reordered,
        Kind::Truncated,
        Kind::Rewritten,
        Kind::OtherKey,
        Kind::BadSignature,
    ] {
        assert!(count(kind) > 0, "{} was never found: {total:#?}", kind.as_str());
    }
}
