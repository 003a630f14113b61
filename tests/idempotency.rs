//! A POST with an `Idempotency-Key` is done once, whatever becomes of the server in the middle of it: whoever got no answer
//! asks again, and finds done what was asked for, once.
//!
//! Every POST of the route table is sent in several copies at once to a real server that is killed at some moment of it;
//! then each is sent again. What they did is read from the log: each sender has a name of its own, and everything that a
//! request does carries it.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::AtomicU64;
use std::sync::atomic::Ordering::SeqCst;
use std::time::{Duration, Instant};

use futures_util::future::join_all;
use jiff::tz::TimeZone;
use jiff::{Timestamp, ToSpan};
use orchestra_events::store::MAX_PAGE;
use orchestra_events::store::sqlite::SqliteStore;
use orchestra_events::{Envelope, EventStore as _, Position};
use orchestra_web::api::endpoints::endpoints;
use orchestra_web::api::repeat::{Repeat, repeat};
use reqwest::Method;
use serde_json::{Value, json};

use crate::billing::{OLD_NANOS, seed_last_month};
use crate::harness::{House, PATIENCE, REPO, Seed, Setup, nano_usd, program, script};
use crate::webhooks::receiver::{Answer, Receiver};

/// Copies of a request that are under way at once.
const COPIES: usize = 3;
/// Requests of each kind between two kills.
const EACH: usize = 2;
/// Kills that there are at least.
const LEAST_KILLS: usize = 4;
/// Kills after which both ways of being in the middle of a request must have been met. A task takes as many messages.
const MOST_KILLS: usize = 15;
/// The team whose month is closed before the first kill, for bills to be pushed.
const BILLED: &str = "billed";

/// Every POST of the interface that is done once.
fn paths() -> BTreeSet<&'static str> {
    let posts = endpoints().into_iter().filter(|endpoint| endpoint.method == "POST");
    let once = posts.filter(|post| match repeat(&post.method, post.path).unwrap() {
        Repeat::Idempotent | Repeat::NamesWhatIsMade | Repeat::Claimed { .. } => true,
    });
    // A test of a webhook leaves nothing in the log: after a kill it is sent again, and a repeat is refused.
    once.map(|post| post.path).filter(|path| *path != "/v1/webhooks/{id}/test").collect()
}

/// One thing that somebody wants done once.
struct Wish {
    route: &'static str,
    path: String,
    body: Value,
    /// The sender's name, and that of the request.
    name: String,
}

/// What was answered.
#[derive(Debug)]
struct Told {
    status: u16,
    replayed: bool,
    body: Value,
}

/// What a request of this kind does and answers when nobody disturbs it.
#[derive(Debug)]
struct Undisturbed {
    status: u16,
    does: Vec<String>,
}

struct Scene {
    house: House,
    receiver: Receiver,
    month: String,
    /// A task whose agent has begun, and so takes messages.
    listens: String,
    wishes: usize,
    /// Answers that have come.
    answers: AtomicU64,
}

impl Scene {
    async fn post(&self, path: &str, body: Value) -> Value {
        let (status, answer) = self.house.api.post(path, &body).await;
        assert!((200..300).contains(&status), "{path}: {status} {answer}");
        answer
    }

    fn id(answer: &Value) -> String {
        answer["id"].as_str().unwrap().to_owned()
    }

    /// A task that waits for its key, and so stands still.
    async fn waiting_task(&self) -> String {
        let id = self.house.submit(json!({})).await;
        self.house.event(&id, "credentials-required").await;
        id
    }

    fn campaign(&self, name: &str) -> Value {
        let mut asked = self.house.payload();
        asked.as_object_mut().unwrap().remove("repo");
        asked["name"] = name.into();
        asked["repos"] = json!([REPO]);
        asked
    }

    async fn webhook(&self, team: &str) -> String {
        Self::id(&self.post("/v1/webhooks", self.hook(team)).await)
    }

    fn hook(&self, team: &str) -> Value {
        json!({ "url": self.receiver.url(), "events": ["billing.invoice-ready", "billing.period-closed"], "team": team })
    }

    /// A wish of this kind, with what it is about made ready. Whoever adds a POST says here what is to be sent.
    async fn wish(&mut self, route: &'static str) -> Wish {
        self.wishes += 1;
        let name = format!("sender-{}", self.wishes);
        let at = |id: &str| route.replace("{id}", id);
        let (path, body) = match route {
            "/v1/tasks" => (route.to_owned(), self.house.payload()),
            "/v1/campaigns" => (route.to_owned(), self.campaign(&name)),
            "/v1/webhooks" => (route.to_owned(), self.hook("platform")),
            "/v1/keys" => (route.to_owned(), json!({ "name": name, "team": "platform", "scopes": ["tasks:read"] })),
            "/v1/keys/{id}/rotate" => {
                let new = json!({ "name": "to be rotated", "team": "platform", "scopes": ["tasks:read"] });
                (at(&Self::id(&self.post("/v1/keys", new).await)), json!({}))
            }
            "/v1/tasks/{id}/cancel" => (at(&self.waiting_task().await), json!({})),
            "/v1/tasks/{id}/messages" => (at(&self.listens), json!({ "message": name })),
            "/v1/tasks/{id}/retry" => {
                let id = self.waiting_task().await;
                self.post(&format!("/v1/tasks/{id}/cancel"), json!({})).await;
                self.house.ended(&id).await;
                (at(&id), json!({}))
            }
            "/v1/campaigns/{id}/cancel" | "/v1/campaigns/{id}/retry" => {
                let mut asked = self.campaign(&name);
                if route.ends_with("retry") {
                    // Its task fails before it needs anything else.
                    asked["repos"] = json!(["acme/is-not-there"]);
                    asked["credentials"] = json!({ "model": { "apiKey": "sk-of-the-tests" } });
                }
                let id = Self::id(&self.post("/v1/campaigns", asked).await);
                if route.ends_with("retry") {
                    self.finished(&id).await;
                }
                (at(&id), json!({}))
            }
            "/v1/webhooks/{id}/secret" => (at(&self.webhook("platform").await), json!({})),
            "/v1/webhooks/{id}/replay" => (at(&self.webhook("platform").await), json!({ "from": 1, "to": 1 })),
            "/v1/audit/checkpoints" => (route.to_owned(), json!({})),
            "/v1/billing/periods/{period}/close" => {
                (format!("/v1/billing/periods/{}/close?team={}", self.month, team(self.wishes)), json!({}))
            }
            "/v1/billing/periods/{period}/push" => {
                let to = json!({ "webhook": self.webhook(BILLED).await });
                (format!("/v1/billing/periods/{}/push?team={BILLED}", self.month), to)
            }
            route => panic!("what is sent to POST {route}? Say so here"),
        };
        Wish { route, path, body, name }
    }

    async fn finished(&self, campaign: &str) {
        let deadline = Instant::now() + PATIENCE;
        while self.house.api.get(&format!("/v1/campaigns/{campaign}")).await.1["finishedAt"].is_null() {
            assert!(Instant::now() < deadline, "{campaign} goes on");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    /// Sends so many copies at once. What got no answer is not there.
    async fn send(&self, wish: &Wish, copies: usize) -> Vec<Told> {
        let one = || async {
            let request = self.house.api.request(Method::POST, &wish.path).json(&wish.body);
            let request = request.header("user-agent", &wish.name).header("idempotency-key", &wish.name);
            let answer = request.timeout(PATIENCE).send().await.ok()?;
            let (status, headers) = (answer.status().as_u16(), answer.headers().clone());
            let body = serde_json::from_slice(&answer.bytes().await.ok()?).ok()?;
            self.answers.fetch_add(1, SeqCst);
            Some(Told { status, replayed: headers.contains_key("idempotency-replayed"), body })
        };
        join_all((0..copies).map(|_| one())).await.into_iter().flatten().collect()
    }

    /// The log of a server that does not run.
    async fn log(&self) -> Vec<Envelope> {
        let store = SqliteStore::open(self.house.data().join("events.db")).unwrap();
        let (mut log, mut after) = (Vec::new(), Position::START);
        loop {
            let page = store.read_all(after, MAX_PAGE).await.unwrap();
            let Some(last) = page.last() else { return log };
            after = last.position;
            log.extend(page);
        }
    }
}

/// The team whose month a wish closes.
fn team(wish: usize) -> String {
    format!("team-{wish}")
}

/// What a wish did: what carries its sender's name, claims and answers aside. Of a campaign the tasks are its own to make.
fn done(log: &[Envelope], wish: &Wish) -> Vec<String> {
    let theirs = |event: &&Envelope| {
        let from = event.actor.origin.as_ref().and_then(|origin| origin.user_agent.as_deref());
        let of_a_task = wish.route.starts_with("/v1/campaigns") && event.stream.category() == "task";
        from == Some(&*wish.name) && event.stream.category() != "request" && !of_a_task
    };
    let mut done: Vec<_> = log.iter().filter(theirs).map(|event| event.kind.to_string()).collect();
    if wish.route.ends_with("/push") {
        // A push that a kill cut off is made again, with the messages' ids as they were: the receiver counts them once.
        done.dedup();
    }
    done
}

/// How the requests of these wishes stand in a log: claimed and nothing done, done and no answer written down.
fn in_the_middle(log: &[Envelope], wishes: &[Wish]) -> (usize, usize) {
    let (mut claimed, mut unanswered) = (0, 0);
    for wish in wishes {
        let of_request = |event: &&Envelope| {
            let from = event.actor.origin.as_ref().and_then(|origin| origin.user_agent.as_deref());
            from == Some(&*wish.name) && event.stream.category() == "request"
        };
        if log.iter().rfind(of_request).is_some_and(|last| &*last.kind == "request-claimed") {
            if done(log, wish).is_empty() { claimed += 1 } else { unanswered += 1 }
        }
    }
    (claimed, unanswered)
}

async fn verified(house: &House) {
    let verified = program().args(["audit", "verify", "--data"]).arg(house.data()).output();
    let verified = tokio::time::timeout(PATIENCE, verified).await.unwrap().unwrap();
    assert!(verified.status.success(), "{}", String::from_utf8_lossy(&verified.stdout));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_post_is_done_once_whenever_the_server_is_killed() {
    let config = "[webhooks]\nmax = 200\nnetworks = [\"127.0.0.0/8\"]\n[scheduler]\nplaces = 64\nper_team = 64\n";
    let mut house = Setup::new(script(json!([
        { "text": "This takes a while.", "fault": { "kind": "stall", "times": 1 } },
    ])))
    .key_required()
    .config(config)
    .open()
    .await;
    let today = Timestamp::now().to_zoned(TimeZone::UTC).date();
    let day = today.first_of_month().checked_sub(3.days()).unwrap();
    house.kill().await;
    seed_last_month(&house, BILLED, day).await;
    let paths = paths();
    for wish in 1..=paths.len() * (1 + EACH * MOST_KILLS) {
        // Which wishes close months is known from the order of the paths.
        if (wish - 1) % paths.len() == paths.iter().position(|path| path.ends_with("/close")).unwrap() {
            seed_last_month(&house, &team(wish), day).await;
        }
    }
    house.restart().await;
    let month = day.strftime("%Y-%m").to_string();
    let receiver = Receiver::start(|_, _| Answer::Status(200)).await;
    let key = json!({ "credentials": { "model": { "apiKey": "sk-of-the-tests" } } });
    let listens = house.submit(key).await;
    house.event(&listens, "model-called").await;
    let mut scene = Scene { house, receiver, month, listens, wishes: 0, answers: AtomicU64::new(0) };
    let close = format!("/v1/billing/periods/{}/close?team={BILLED}", scene.month);
    scene.post(&close, json!({})).await;

    // What each does when nobody disturbs it but its own copies.
    let (mut first, mut statuses) = (Vec::new(), BTreeMap::new());
    for route in &paths {
        let wish = scene.wish(route).await;
        let told = scene.send(&wish, COPIES).await;
        assert_eq!(told.len(), COPIES, "{route}");
        for answer in &told {
            assert!((200..300).contains(&answer.status), "{route}: {answer:?}");
            assert_eq!((answer.status, &answer.body["id"]), (told[0].status, &told[0].body["id"]), "{route}");
        }
        statuses.insert(*route, told[0].status);
        first.push(wish);
    }
    scene.house.kill().await;
    let log = scene.log().await;
    let undisturbed: BTreeMap<_, _> = first
        .iter()
        .map(|wish| (wish.route, Undisturbed { status: statuses[wish.route], does: done(&log, wish) }))
        .collect();
    for (route, once) in &undisturbed {
        assert!(!once.does.is_empty(), "{route} does nothing that could be told apart: {undisturbed:#?}");
        let kinds: BTreeSet<_> = once.does.iter().collect();
        assert_eq!(kinds.len(), once.does.len(), "{route} is done once: {once:?}");
    }
    scene.house.restart().await;

    let (mut dice, mut claimed, mut unanswered) = (Seed(6), 0, 0);
    for kill in 0..MOST_KILLS {
        if kill >= LEAST_KILLS && claimed > 0 && unanswered > 0 {
            break;
        }
        let mut wishes = Vec::new();
        for _ in 0..EACH {
            for route in &paths {
                wishes.push(scene.wish(route).await);
            }
        }
        // After some of the answers, however long they take: the others are on their way then.
        let after = scene.answers.load(SeqCst) + dice.below((wishes.len() * COPIES) as u64);
        let server = scene.house.server.take().unwrap();
        let kill = async {
            let deadline = Instant::now() + PATIENCE;
            while scene.answers.load(SeqCst) < after {
                assert!(Instant::now() < deadline, "the server does not answer");
                tokio::time::sleep(Duration::from_micros(100)).await;
            }
            server.kill().await;
        };
        let (told, ()) = tokio::join!(join_all(wishes.iter().map(|wish| scene.send(wish, COPIES))), kill);
        let left = in_the_middle(&scene.log().await, &wishes);
        claimed += left.0;
        unanswered += left.1;
        scene.house.restart().await;
        let again = join_all(wishes.iter().map(|wish| scene.send(wish, COPIES))).await;
        for ((wish, told), again) in wishes.iter().zip(&told).zip(&again) {
            let what = format!("{} by {}", wish.path, wish.name);
            assert_eq!(again.len(), COPIES, "{what}");
            let claims = matches!(repeat(&"POST".parse().unwrap(), wish.route), Some(Repeat::Claimed { .. }));
            for answer in told.iter().chain(again) {
                assert_eq!(answer.status, undisturbed[wish.route].status, "{what}: {answer:?}");
                assert_eq!(answer.body["id"], again[0].body["id"], "{what}");
            }
            // Who was answered once is only shown what stands, and one copy at most did it.
            let did = again.iter().filter(|answer| !answer.replayed).count();
            assert!(!claims || did <= usize::from(told.is_empty()), "{what}: {told:?} {again:?}");
        }
        scene.house.kill().await;
        let log = scene.log().await;
        for wish in &wishes {
            assert_eq!(done(&log, wish), undisturbed[wish.route].does, "{} by {}", wish.path, wish.name);
        }
        scene.house.restart().await;
    }
    println!("claimed and not done: {claimed}; done and not answered: {unanswered}");
    assert!(claimed > 0 && unanswered > 0, "no kill came in the middle: {claimed} {unanswered}");

    // A push that was cut off is on the bill like any other, and each closed month has its sum once.
    let path = format!("/v1/billing/periods?team={BILLED}");
    let (_, periods) = scene.house.api.get(&path).await;
    assert_eq!(nano_usd(&periods["data"][0]["costUsd"]), u64::try_from(OLD_NANOS).unwrap());
    scene.house.kill().await;
    verified(&scene.house).await;
}
