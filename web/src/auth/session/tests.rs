//! What is promised of sessions, over a log in memory.

use orchestra_events::KeyId;
use orchestra_events::session::Role;
use orchestra_events::store::memory::MemoryStore;
use secrecy::ExposeSecret as _;

use super::*;

fn ada(number: u128) -> NewSession {
    let key = KeyId::from_uuid(Uuid::from_u128(number));
    NewSession {
        holder: Holder::Key { key },
        way: Way::Key,
        name: "Ada".to_owned(),
        memberships: Vec::new(),
        generation: 0,
    }
}

fn person(teams: &[&str]) -> NewSession {
    let part = |team: &&str| Membership { team: Some((*team).to_owned()), role: Role::Viewer };
    let holder = Holder::Person { issuer: "https://a.example".to_owned(), subject: "5f0".to_owned() };
    NewSession { holder, way: Way::Oidc, memberships: teams.iter().map(part).collect(), ..ada(0) }
}

fn actor() -> Actor {
    Actor::system("test")
}

async fn start(sessions: &Sessions, store: &MemoryStore, new: NewSession) -> (SessionId, String) {
    let (id, cookie) = sessions.start(store, new, None, &actor()).await.expect("a session");
    (id, cookie.expose_secret().to_owned())
}

#[tokio::test]
async fn a_restart_signs_nobody_out_and_nobody_in() {
    let store = MemoryStore::new();
    let first = Sessions::default();
    let (id, cookie) = start(&first, &store, person(&["platform", "mobile"])).await;
    let (gone, left) = start(&first, &store, ada(1)).await;
    first.choose(&store, id, Some("mobile".to_owned()), &actor()).await.expect("a change");
    first.end(&store, gone, SessionEnd::SignedOut, &actor()).await.expect("an end");
    let again = Sessions::load(&store, Lasting::default()).await.expect("a book");
    let open = again.find(&cookie).expect("still signed in");
    assert_eq!((open.id, open.session.chosen), (id, 1));
    assert!(again.find(&left).is_none() && again.get(gone).is_none());
    // What is in the log lets nobody in.
    for envelope in store.read_all(Position::START, MAX_PAGE).await.expect("events") {
        assert!(!envelope.data.get().contains(&cookie));
        for text in envelope.data.get().split('"').filter(|text| text.len() == 64) {
            assert!(again.find(text).is_none());
        }
    }
}

#[tokio::test]
async fn a_session_is_over_in_time_and_when_nobody_uses_it() {
    let store = MemoryStore::new();
    let short = Lasting { lifetime: Duration::from_millis(30), idle: Duration::from_secs(60) };
    let sessions = Sessions::new(short);
    let (id, cookie) = start(&sessions, &store, ada(1)).await;
    assert!(sessions.find(&cookie).is_some() && sessions.get(id).is_some());
    tokio::time::sleep(Duration::from_millis(40)).await;
    assert!(sessions.find(&cookie).is_none() && sessions.get(id).is_none() && sessions.all().is_empty());
    assert!(Sessions::load(&store, short).await.expect("a book").find(&cookie).is_none());
    // Used by coming with its cookie; looking at it is no use.
    let idle = Sessions::new(Lasting { idle: Duration::from_millis(200), ..Lasting::default() });
    let (id, cookie) = start(&idle, &store, ada(2)).await;
    for _ in 0..6 {
        tokio::time::sleep(Duration::from_millis(50)).await;
        assert!(idle.find(&cookie).is_some());
    }
    tokio::time::sleep(Duration::from_millis(250)).await;
    assert!(idle.get(id).is_none());
    idle.sweep(&store).await;
    let after = Sessions::load(&store, Lasting::default()).await.expect("a book");
    assert!(after.find(&cookie).is_none(), "what nobody used is over after a restart too");
}

#[tokio::test]
async fn a_browser_has_one_session_and_a_holder_not_too_many() {
    let store = MemoryStore::new();
    let sessions = Sessions::default();
    let (_, first) = start(&sessions, &store, ada(1)).await;
    let renewed = sessions.start(&store, ada(2), Some(&first), &actor()).await.expect("a session");
    assert!(sessions.find(&first).is_none(), "signing in anew ends what the browser had");
    assert!(sessions.find(renewed.1.expose_secret()).is_some());
    let (oldest, _) = start(&sessions, &store, ada(3)).await;
    for _ in 0..MAX_PER_HOLDER {
        start(&sessions, &store, ada(3)).await;
    }
    assert!(sessions.get(oldest).is_none());
    assert_eq!(sessions.all().len(), MAX_PER_HOLDER + 1);
}

#[tokio::test]
async fn a_team_that_signs_in_without_end_crowds_out_itself_alone() {
    let store = MemoryStore::new();
    let sessions = Sessions { most: Most { of_all: 10, of_team: 6, of_holder: 3 }, ..Sessions::default() };
    let of = |team: &str| Actor { team: Some(team.to_owned()), ..actor() };
    let begin = async |number: u128, team: &str| {
        sessions.start(&store, ada(number), None, &of(team)).await.expect("a session").0
    };
    let open = |of: &[SessionId]| of.iter().filter(|id| sessions.get(**id).is_some()).count();
    let quiet = [begin(1, "quiet").await, begin(2, "quiet").await];
    let (mut loud, mut other) = (Vec::new(), Vec::new());
    for number in 10..30 {
        loud.push(begin(number, "loud").await);
    }
    assert_eq!((open(&quiet), open(&loud)), (2, 6), "as many as a team may have");
    assert_eq!(open(&loud[14..]), 6, "the newest");
    for number in 30..50 {
        other.push(begin(number, "other").await);
    }
    assert_eq!((open(&quiet), open(&loud), open(&other)), (2, 6, 2), "all of them are full: its own give way");
    let late = begin(60, "late").await;
    assert_eq!((open(&[late]), open(&quiet), open(&loud), open(&other)), (1, 2, 5, 2), "the largest makes room");
    // Whose team it is outlives a restart.
    let mut again = Sessions::load(&store, Lasting::default()).await.expect("a book");
    again.most = Most { of_all: 10, of_team: 2, of_holder: 3 };
    again.start(&store, ada(70), None, &of("quiet")).await.expect("a session");
    assert_eq!(quiet.iter().filter(|id| again.get(**id).is_some()).count(), 1);
}

#[tokio::test]
async fn endings_ring_and_two_at_once_are_one() {
    let store = MemoryStore::new();
    let sessions = Sessions::default();
    let (id, _) = start(&sessions, &store, person(&["a", "b"])).await;
    let mut cuts = sessions.cuts();
    cuts.borrow_and_update();
    sessions.choose(&store, id, Some("b".to_owned()), &actor()).await.expect("a change");
    assert!(cuts.has_changed().expect("open"));
    cuts.borrow_and_update();
    let foreign = sessions.choose(&store, id, Some("c".to_owned()), &actor()).await;
    assert_eq!(foreign, Err(SessionError::Refused(orchestra_events::session::Refusal::NoSuchTeam)));
    let by = actor();
    let (one, two) = tokio::join!(
        sessions.end(&store, id, SessionEnd::SignedOut, &by),
        sessions.end(&store, id, SessionEnd::Ended, &by)
    );
    assert_eq!((one, two), (Ok(()), Ok(())));
    assert!(cuts.has_changed().expect("open"));
    let events = store.read_stream(&StreamName::session(id), None, orchestra_events::Direction::Forwards, 10).await;
    assert_eq!(events.expect("a stream").len(), 3);
}

#[tokio::test]
async fn failures_are_written_down_and_do_not_fill_the_log() {
    let store = MemoryStore::new();
    let sessions = Sessions::default();
    for _ in 0..REFUSALS + 30 {
        sessions.refuse(&store, Way::Key, "unknown-key", None, &actor()).await;
    }
    assert_eq!(store.head().await.expect("a head").0, u64::from(REFUSALS));
    let later = Instant::now() + REFUSAL_PAUSE;
    assert_eq!(sessions.admit_refusal(later), Some(30), "and how many were left out is said");
    assert_eq!(sessions.admit_refusal(later), None);
}
