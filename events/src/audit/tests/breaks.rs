//! Each kind of break once, by hand; and what only a key or a checkpoint from elsewhere shows.

use super::super::Kind;
use super::*;

fn found(lines: &[Vec<u8>], trust: &Trust) -> (Kind, u64, u64) {
    let broken = check(lines, trust).broken.expect("a break");
    assert!(!broken.to_string().is_empty());
    (broken.kind, broken.from, broken.to)
}

#[test]
fn each_kind_is_told_apart() {
    let log = sample(60);
    let good = log.lines(&key());
    let with = |change: &dyn Fn(&mut Vec<Vec<u8>>)| {
        let mut lines = good.clone();
        change(&mut lines);
        found(&lines, &pinned())
    };
    assert_eq!(with(&|lines| drop(lines.remove(20))), (Kind::Dropped, 20, 20));
    assert_eq!(with(&|lines| drop(lines.drain(20..25))), (Kind::Dropped, 20, 20));
    assert_eq!(with(&|lines| lines.swap(20, 21)), (Kind::Reordered, 20, 20));
    assert_eq!(with(&|lines| lines.swap(20, 33)), (Kind::Reordered, 20, 20));
    assert_eq!(with(&|lines| lines.insert(20, lines[7].clone())), (Kind::Inserted, 20, 20));
    assert_eq!(with(&|lines| lines.insert(20, lines[41].clone())), (Kind::Inserted, 20, 20));
    assert_eq!(with(&|lines| lines.insert(20, b"{}\n".to_vec())), (Kind::Inserted, 20, 20));
    assert_eq!(with(&|lines| lines[20] = b"{}\n".to_vec()), (Kind::Altered, 20, 20));
    assert_eq!(with(&|lines| drop(lines.pop())), (Kind::Truncated, 61 + extra(&log), 61 + extra(&log)));
    assert_eq!(with(&|lines| lines.truncate(30)), (Kind::Truncated, 30, 30));
    assert_eq!(with(&|lines| lines.truncate(1)), (Kind::Truncated, 1, 1));
    assert_eq!(with(&|lines| lines.clear()), (Kind::Altered, 0, 0));
    let end = good.len() - 1;
    assert_eq!(with(&|lines| drop(lines.remove(end - 1))), (Kind::Truncated, end as u64 - 1, end as u64 - 1));
    assert_eq!(with(&|lines| lines.push(lines[3].clone())), (Kind::Inserted, end as u64 + 1, end as u64 + 1));
    assert_eq!(
        with(&|lines| {
            let text = String::from_utf8(lines[20].clone()).unwrap();
            lines[20] = text.replace("\"position\":20", "\"position\":21").into_bytes();
        }),
        (Kind::Altered, 20, 20)
    );
}

#[test]
fn erased_words_leave_their_seal_and_other_words_do_not_fit_it() {
    let log = sample(60);
    let good = check(&log.lines(&key()), &pinned());
    assert!(good.found.words > 5 && good.found.words_gone == 0, "{good:?}");
    let of_a_task = |linked: &Linked| linked.private.is_some() && linked.event.stream.task_id().is_some();
    let place = log.events.iter().position(of_a_task).unwrap();
    let (stream, number) = (log.events[place].event.stream.clone(), place as u64 + 1);
    let mut erased = log.clone();
    erased.events[place].private = None;
    // Nothing says that they were erased: somebody took them away.
    assert_eq!(found(&erased.lines(&key()), &pinned()), (Kind::Stripped, number, number));
    erased.raw(&"task-7".parse().unwrap(), "content-erased", r#"{"reason":"request","events":1}"#);
    assert_eq!(found(&erased.lines(&key()), &pinned()), (Kind::Stripped, number, number), "those of another task");
    erased.raw(&stream, "content-erased", r#"{"reason":"request","events":9}"#);
    let report = check(&erased.lines(&key()), &pinned());
    assert!(report.holds(), "{report:?}");
    assert_eq!(report.found.words_gone, 1);
    // What comes behind an erasure is not what it erased.
    while log.events.len() < 200 && erased.events.last().is_none_or(|linked| linked.private.is_none()) {
        erased.raw(&stream, "steered", r#"{"message":"later"}"#);
    }
    erased.events.last_mut().unwrap().private = None;
    let last = erased.events.len() as u64;
    assert_eq!(found(&erased.lines(&key()), &pinned()), (Kind::Stripped, last, last));
    let mut none = log.clone();
    none.events.iter_mut().for_each(|linked| linked.private = None);
    assert!(check(&none.lines(&key()), &pinned()).holds());

    let mut other = log.clone();
    other.events[20].private.as_mut().unwrap().content = Json::stored("{\"words\":\"others\"}");
    assert_eq!(found(&other.lines(&key()), &pinned()), (Kind::Altered, 21, 21));
    let mut salted = log.clone();
    salted.events[20].private.as_mut().unwrap().salt[0] ^= 1;
    assert_eq!(found(&salted.lines(&key()), &pinned()), (Kind::Altered, 21, 21));
    let mut unsealed = log.clone();
    unsealed.events[20].seal = None;
    assert_eq!(found(&unsealed.lines(&key()), &pinned()), (Kind::Altered, 21, 21));
    let mut foisted = log.clone();
    foisted.events[21].private = log.events[20].private.clone();
    assert_eq!(found(&foisted.lines(&key()), &pinned()), (Kind::Altered, 22, 22));
}

/// How many events a sample has above sixty.
fn extra(log: &Log) -> u64 {
    log.events.len() as u64 - 60
}

#[test]
fn an_event_with_good_links_does_not_slip_in() {
    let log = sample(60);
    let mut lines = log.lines(&key());
    let mut forged = Log { events: log.events[..19].to_vec() };
    forged.raw(&"task-1".parse().unwrap(), "steered", "{}");
    forged.raw(&"ledger-x".parse().unwrap(), "budget-set", "{}");
    lines.insert(20, line(&forged.events[19]));
    assert_eq!(found(&lines, &pinned()), (Kind::Inserted, 20, 20));
    lines.insert(21, line(&forged.events[20]));
    assert_eq!(found(&lines, &pinned()), (Kind::Inserted, 20, 20));
}

#[test]
fn a_past_that_was_written_anew_shows_in_the_signatures() {
    let log = sample(120);
    let signed: Vec<u64> = log
        .events
        .iter()
        .filter_map(|linked| CheckpointEvent::decode(&linked.event).unwrap())
        .map(|CheckpointEvent::CheckpointSigned(it)| it.position)
        .collect();
    assert!(signed.len() >= 2, "{signed:?}");
    let mut rewritten = log.clone();
    let place = signed[0] + 5;
    rewritten.events[usize::try_from(place).unwrap() - 1].event.data = Json::stored("{\"nothing\":\"happened\"}");
    rewritten.relink(place);
    // Its end is signed with the true key, as an export of the changed database would be.
    let (kind, from, to) = found(&rewritten.lines(&key()), &pinned());
    assert_eq!((kind, from, to), (Kind::Rewritten, signed[0] + 1, signed[1]));

    // Without checkpoints inside, the one that was copied elsewhere shows it.
    let mut plain = Log::default();
    for number in 0..40 {
        plain.raw(&"task-1".parse().unwrap(), "queued", &format!("{{\"n\":{number}}}"));
    }
    let old = Log { events: plain.events[..25].to_vec() }.statement().sign(&key());
    let trust = Trust { keys: Vec::new(), checkpoints: vec![old] };
    let report = check(&plain.lines(&key()), &trust);
    assert!(report.holds() && report.found.given == 1, "{report:?}");
    plain.events[9].event.data = Json::stored("{}");
    plain.relink(10);
    assert!(check(&plain.lines(&key()), &pinned()).holds(), "nothing inside says otherwise");
    assert_eq!(found(&plain.lines(&key()), &trust), (Kind::Rewritten, 1, 25));

    plain.events.truncate(20);
    assert_eq!(found(&plain.lines(&key()), &trust), (Kind::Truncated, 21, 21));
}

#[test]
fn another_key_is_no_key() {
    let log = sample(60);
    let foreign = log.lines(&other_key());
    assert_eq!(found(&foreign, &pinned()), (Kind::OtherKey, 0, 0));
    let mut end_alone = log.lines(&key());
    let last = end_alone.len() - 1;
    end_alone[last] = foreign[last].clone();
    for trust in [pinned(), Trust::default()] {
        assert_eq!(found(&end_alone, &trust), (Kind::OtherKey, last as u64, last as u64));
    }
    let (kind, ..) = found(&foreign, &Trust::default());
    assert_eq!(kind, Kind::OtherKey, "those inside are by another key than the header names");
    let both = Trust { keys: vec![public(&key()), public(&other_key())], checkpoints: Vec::new() };
    assert!(check(&foreign, &both).holds(), "the key was changed, and both are trusted");
    let stolen = Trust { keys: vec![public(&key())], checkpoints: vec![log.statement().sign(&other_key())] };
    assert_eq!(found(&log.lines(&key()), &stolen).0, Kind::OtherKey);
}
