//! Reads in one thread, works in several, goes on in order in the caller's: what verifying a log takes.
//!
//! ```text
//! read ──chunk──▶ queue ──▶ workers ──┐ each chunk's answer has a channel of its own,
//!   └────────────────────── order ────┴──▶ the caller takes them in the order in which they were read
//! ```

use std::num::NonZero;
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::sync::{Mutex, PoisonError};
use std::thread;

/// Chunks that wait between two threads, per worker.
const QUEUE: usize = 2;
/// Most workers; the caller's own thread is the bound long before.
const MAX_WORKERS: usize = 16;

type Answer<T> = SyncSender<T>;

/// Hands `consume` what `work` makes of each chunk, in the order in which `read` brings them, until one of them ends.
/// A reading error comes in its place and ends it.
pub fn in_order<C: Send, T: Send, E: Send, R>(
    mut read: impl FnMut() -> Result<Option<C>, E> + Send,
    work: impl Fn(C) -> Vec<T> + Sync,
    consume: impl FnOnce(&mut dyn Iterator<Item = T>) -> R,
) -> Result<R, E> {
    let Some(first) = read()? else { return Ok(consume(&mut std::iter::empty())) };
    let Some(second) = read()? else { return Ok(consume(&mut work(first).into_iter())) };
    let workers = thread::available_parallelism().map_or(1, NonZero::get).min(MAX_WORKERS);
    let (to_workers, waiting) = sync_channel::<(C, Answer<Vec<T>>)>(QUEUE * workers);
    let (in_turn, order) = sync_channel::<Result<Receiver<Vec<T>>, E>>(2 * QUEUE * workers);
    let waiting = Mutex::new(waiting);
    let mut failed = None;
    let done = thread::scope(|scope| {
        let (work, waiting) = (&work, &waiting);
        scope.spawn(move || {
            let mut ready = [Some(second), Some(first)].into_iter().rev().flatten();
            loop {
                let chunk = match ready.next() {
                    Some(chunk) => chunk,
                    None => match read() {
                        Ok(Some(chunk)) => chunk,
                        Ok(None) => return,
                        Err(error) => {
                            // Nobody waits for it any more if this fails.
                            let _ = in_turn.send(Err(error));
                            return;
                        }
                    },
                };
                let (reply, answer) = sync_channel(1);
                if in_turn.send(Ok(answer)).is_err() || to_workers.send((chunk, reply)).is_err() {
                    return;
                }
            }
        });
        for _ in 0..workers {
            scope.spawn(move || {
                loop {
                    let next = waiting.lock().unwrap_or_else(PoisonError::into_inner).recv();
                    let Ok((chunk, reply)) = next else { return };
                    // The caller has ended before the file if this fails.
                    let _ = reply.send(work(chunk));
                }
            });
        }
        let mut items = std::iter::from_fn(|| match order.recv() {
            Ok(Ok(answer)) => answer.recv().ok(),
            Ok(Err(error)) => {
                failed = Some(error);
                None
            }
            Err(_) => None,
        })
        .flatten();
        let done = consume(&mut items);
        // The reader stops at its next chunk, and with it the workers.
        drop(items);
        drop(order);
        done
    });
    match failed {
        Some(error) => Err(error),
        None => Ok(done),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn everything_arrives_in_order() {
        let mut next = 0;
        let read = || {
            next += 1;
            Ok::<_, String>((next <= 500).then_some(next))
        };
        let got = in_order(read, |number| vec![number * 2, number * 2 + 1], |items| items.collect::<Vec<u32>>());
        assert_eq!(got.unwrap(), (2..1002).collect::<Vec<_>>());
    }

    #[test]
    fn an_error_ends_it_and_so_does_a_reader_who_has_enough() {
        for (length, wanted) in [(0, 0), (1, 1), (2, 2), (300, 300)] {
            let mut next = 0;
            let read = || {
                next += 1;
                if next > length { Err("torn") } else { Ok(Some(next)) }
            };
            let got = in_order(read, |number| vec![number], |items| items.count());
            assert_eq!(got, Err("torn"), "{wanted}");
        }
        let endless = || Ok::<_, String>(Some(1));
        assert_eq!(in_order(endless, |number| vec![number; 10], |items| items.take(25).count()), Ok(25));
    }
}
