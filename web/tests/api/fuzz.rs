//! Readers of what strangers send, fed with a seeded mutator: nothing panics, and what is taken holds what it promises.

use std::time::{Duration, Instant};

use actix_web::test::TestRequest;
use actix_web::web::Bytes;
use orchestra_events::KeyId;
use orchestra_events::repo::RepoRef;
use orchestra_web::api::query::Parameters;
use orchestra_web::api::{campaign_payload, fields, payload};
use orchestra_web::auth::{Caller, Who};
use serde_json::json;
use uuid::Uuid;

use crate::harness::{Server, example, get};

/// The longest that one target runs.
const TIME: Duration = Duration::from_secs(5);
/// Inputs of one target: enough for each mutation of each seed many times over.
const ROUNDS: u64 = 20_000;
/// Longest input, in bytes.
const LONGEST: usize = 64 * 1024;

/// Numbers that look random and are the same in every run (SplitMix64).
struct Luck(u64);

impl Luck {
    fn below(&mut self, end: usize) -> usize {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        usize::try_from((mixed ^ (mixed >> 31)) % (end.max(1) as u64)).expect("below a usize")
    }
}

/// What has gone wrong in readers before: signs, nesting, numbers at an edge, escapes, other alphabets, control bytes.
const TOKENS: [&str; 24] = [
    "{",
    "}",
    "[",
    "]",
    "\"",
    ":",
    ",",
    "\\",
    "\\u0000",
    "\\ud800",
    "null",
    "-0",
    "1e999",
    "18446744073709551616",
    "0.0000000001",
    "/",
    "..",
    "@",
    "%00",
    "%2f",
    "\u{202e}",
    "é",
    "\r\n",
    "\0",
];

fn mutated(seeds: &[Vec<u8>], luck: &mut Luck) -> Vec<u8> {
    let mut input = seeds[luck.below(seeds.len())].clone();
    for _ in 0..=luck.below(6) {
        let at = luck.below(input.len() + 1);
        match luck.below(6) {
            0 if at < input.len() => input[at] ^= 1 << luck.below(8),
            1 => input.truncate(at),
            2 => {
                let end = (at + luck.below(16)).min(input.len());
                input.drain(at..end);
            }
            3 => {
                let end = (at + luck.below(64)).min(input.len());
                let piece = input[at..end].to_vec();
                let times = 1 << luck.below(8);
                input.splice(at..at, piece.repeat(times));
            }
            4 => {
                let other = &seeds[luck.below(seeds.len())];
                let from = luck.below(other.len() + 1);
                input.splice(at.., other[from..].iter().copied());
            }
            _ => {
                let token = TOKENS[luck.below(TOKENS.len())].repeat(1 << luck.below(9));
                input.splice(at..at, token.bytes());
            }
        }
        input.truncate(LONGEST);
    }
    input
}

fn run(seed: u64, seeds: &[Vec<u8>], mut target: impl FnMut(&[u8]) -> bool) {
    let (mut luck, began, mut taken) = (Luck(seed), Instant::now(), 0);
    for seed in seeds {
        let _ = target(seed);
    }
    for round in 0..ROUNDS {
        if began.elapsed() > TIME {
            assert!(round > 200, "only {round} inputs in {TIME:?}");
            break;
        }
        taken += u64::from(target(&mutated(seeds, &mut luck)));
    }
    assert!(taken > 0, "nothing but the seeds was ever taken");
}

#[test]
fn payloads() {
    let caller =
        Caller { team: Some("platform".to_owned()), ..Caller::named(Who::Key(KeyId::from_uuid(Uuid::max())), "k") };
    let mut whole = example();
    let more = json!({
        "project": "infra", "environment": "prod", "taskType": "upgrade", "customer": "Acme & Söhne", "base": "main",
        "branch": "orchestra/x", "harness": "builtin", "image": "default", "timeoutSeconds": 60, "egress": ["*.example.com:443"],
        "metadata": {"ticket": "OPS-1", "n": 3.5, "urgent": true, "none": null}, "retry": {"attempts": 3, "workspace": "same"},
        "pullRequest": {"title": "T", "body": "B", "draft": true, "reviewers": ["ada"], "labels": ["x"]},
        "credentials": {"git": {"token": "ghp_x"}, "model": {"apiKey": "sk-x"}},
    });
    for (name, value) in more.as_object().expect("an object") {
        whole[name] = value.clone();
    }
    let seeds: Vec<Vec<u8>> = vec![example().to_string().into_bytes(), whole.to_string().into_bytes()];
    run(1, &seeds, |input| {
        let Ok(raw) = fields::json(&Bytes::copy_from_slice(input)) else { return false };
        let _ = campaign_payload::new_campaign(&raw, &caller);
        let Ok(task) = payload::new_task(&raw, &caller) else { return false };
        assert!(!task.repos.is_empty() && !task.task.trim().is_empty() && task.team == "platform");
        assert_eq!(payload::request_hash(&task), payload::request_hash(&task.clone()));
        true
    });
}

#[test]
fn repository_references() {
    let seeds = ["acme/api", "github:acme/api", "gitlab:group/sub/name", "bitbucket:workspace/name", "local:a/b.c_d-e"];
    let seeds: Vec<_> = seeds.iter().map(|seed| seed.as_bytes().to_vec()).collect();
    run(2, &seeds, |input| {
        let Ok(text) = std::str::from_utf8(input) else { return false };
        let Ok(repo) = RepoRef::parse(text, "github") else { return false };
        // What was read is written as it is read again, and leads nowhere but below its forge.
        assert_eq!(RepoRef::parse(&repo.to_string(), "other").as_ref(), Ok(&repo), "{text:?}");
        assert!(repo.path().split('/').all(|part| !part.is_empty() && part != "." && part != ".."), "{text:?}");
        assert!(!repo.to_string().chars().any(char::is_control), "{text:?}");
        true
    });
}

#[test]
fn queries() {
    let seeds = ["limit=5&team=a", "after=12&limit=500", "status=failed&cursor=", "team=%C3%A9&team=b", ""];
    let seeds: Vec<_> = seeds.iter().map(|seed| seed.as_bytes().to_vec()).collect();
    run(3, &seeds, |input| {
        // What a request line can hold.
        let text: String = input.iter().filter(|byte| byte.is_ascii_graphic()).map(|byte| char::from(*byte)).collect();
        let uri = format!("/v1/tasks?{}", text.replace(['#', '"', '<', '>', '\\', '^', '`', '{', '|', '}'], ""));
        if uri.parse::<actix_web::http::Uri>().is_err() {
            return false;
        }
        let request = TestRequest::get().uri(&uri).to_http_request();
        let Ok(mut query) = Parameters::of(&request) else { return false };
        let limit = query.limit(50, 200);
        assert!((1..=200).contains(&limit), "{uri}");
        let _ =
            (query.text("team"), query.text("status"), query.text("cursor"), query.parsed::<u64>("after", "a number"));
        let _ = query.finish();
        true
    });
}

#[actix_web::test]
async fn ids_of_events() {
    let server = Server::start().await;
    let id = server.task(&server.admin, &example()).await;
    let mut luck = Luck(4);
    let seeds = [b"0".to_vec(), b"12".to_vec(), b"9223372036854775807".to_vec()];
    for round in 0..300 {
        let text: String =
            mutated(&seeds, &mut luck).into_iter().filter(|byte| (0x20..0x7f).contains(byte)).map(char::from).collect();
        let text: String = text.chars().take(200).collect();
        let number = text.trim().parse::<i64>().is_ok_and(|number| number >= 0)
            && text.trim().bytes().all(|byte| byte.is_ascii_digit());
        let request = get(&server.admin, &format!("/v1/tasks/{id}/events"));
        let answer = server.send(request.insert_header(("last-event-id", text.clone()))).await;
        assert_eq!(answer.status.as_u16(), if number { 200 } else { 400 }, "round {round}: {text:?}");
    }
}
