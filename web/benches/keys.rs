//! What it costs to know a caller by their key, beside the one thing that cannot be left out: a SHA-256 of the text.
//!
//! `cargo bench -p orchestra-web --bench keys`. One thread; each row is the median of rounds that take turns.

#![allow(
    clippy::unwrap_used,
    clippy::print_stdout,
    reason = "a benchmark prints its table and stops where it cannot go on"
)]

use std::hint::black_box;
use std::sync::Arc;
use std::time::{Duration, Instant};

use orchestra_events::key::Scope;
use orchestra_events::store::memory::MemoryStore;
use orchestra_events::{Actor, EventStore};
use orchestra_web::auth::issuing::rotate_key;
use orchestra_web::auth::{KeyRing, Limits, Rate, Rates, issue_key};
use secrecy::ExposeSecret as _;
use sha2::{Digest as _, Sha256};

/// Keys in the ring.
const KEYS: usize = 10_000;
/// Calls in a round.
const CALLS: u32 = 20_000;
/// Rounds of each row.
const ROUNDS: usize = 15;
/// What a key check may cost.
const GOAL: Duration = Duration::from_micros(20);

/// What is called, and how.
type Row<'a> = (&'a str, Box<dyn Fn() + 'a>);

#[actix_web::main]
async fn main() {
    let store: Arc<dyn EventStore> = Arc::new(MemoryStore::new());
    let who = Actor::system("bench");
    let scopes = vec![Scope::TasksCreate, Scope::TasksRead, Scope::TasksCancel];
    let mut issued = Vec::with_capacity(KEYS);
    for number in 0..KEYS {
        let name = format!("key number {number}");
        issued.push(issue_key(&*store, &name, Some("platform"), "live", scopes.clone(), &who).await.unwrap());
    }
    let (id, old) = &issued[KEYS / 2];
    let (old, known) = (old.expose_secret().to_owned(), issued[KEYS / 3].1.expose_secret().to_owned());
    let fresh = rotate_key(&*store, *id, "live", Duration::from_secs(3_600), &who).await.unwrap();
    let fresh = fresh.expose_secret().to_owned();
    let began = Instant::now();
    let ring = KeyRing::load(&*store).await.unwrap();
    println!("{KEYS} keys folded in {:?}", began.elapsed());
    let wrong = format!("{}{}", &known[..known.len() - 1], if known.ends_with('0') { '1' } else { '0' });
    let nobody = format!("orc_live_{}_{}", "0".repeat(26), "0".repeat(64));
    let limits =
        Limits::new(Rates { caller: Rate::new(u32::MAX, None), team: Rate::new(u32::MAX, None), ..Rates::default() });
    let caller = ring.authenticate(&known).unwrap();
    assert!(ring.authenticate(&wrong).is_none() && ring.authenticate(&nobody).is_none());
    assert!(ring.authenticate(&old).is_some() && ring.authenticate(&fresh).is_some());

    let rows: Vec<Row> = vec![
        ("bare SHA-256 of the text", Box::new(|| _ = black_box(Sha256::digest(black_box(known.as_bytes()))))),
        ("a key", Box::new(|| drop(black_box(ring.authenticate(black_box(&known)))))),
        ("a rotated key, its new text", Box::new(|| drop(black_box(ring.authenticate(black_box(&fresh)))))),
        ("a rotated key, the text before", Box::new(|| drop(black_box(ring.authenticate(black_box(&old)))))),
        ("a wrong secret", Box::new(|| drop(black_box(ring.authenticate(black_box(&wrong)))))),
        ("an id that is nobody's", Box::new(|| drop(black_box(ring.authenticate(black_box(&nobody)))))),
        ("two limits, of key and team", Box::new(|| drop(black_box(limits.check(black_box(&caller)))))),
    ];
    let mut times = vec![Vec::with_capacity(ROUNDS); rows.len()];
    for _ in 0..ROUNDS {
        for ((_, call), times) in rows.iter().zip(&mut times) {
            let began = Instant::now();
            for _ in 0..CALLS {
                call();
            }
            times.push(began.elapsed() / CALLS);
        }
    }
    println!("| what | median | fastest | of the bare hash |\n| --- | --: | --: | --: |");
    let mut bare = None;
    for ((name, _), mut times) in rows.iter().zip(times) {
        times.sort_unstable();
        let (median, fastest) = (times[ROUNDS / 2], times[0]);
        let bare = *bare.get_or_insert(median);
        println!("| {name} | {median:.2?} | {fastest:.2?} | {:.1} × |", median.as_secs_f64() / bare.as_secs_f64());
        if median > GOAL {
            println!("over the goal of {GOAL:?}");
        }
    }
}
