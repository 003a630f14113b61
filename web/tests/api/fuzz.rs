//! Ids of events from a seeded mutator, through a whole server. The readers behind it have fuzz targets of their own (`fuzz/`).

use crate::harness::{Server, example, get};

/// Requests: enough for each mutation of each seed many times over.
const ROUNDS: u32 = 300;
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

#[actix_web::test]
async fn ids_of_events() {
    let server = Server::start().await;
    let id = server.task(&server.admin, &example()).await;
    let mut luck = Luck(4);
    let seeds = [b"0".to_vec(), b"12".to_vec(), b"9223372036854775807".to_vec()];
    for round in 0..ROUNDS {
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
