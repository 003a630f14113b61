//! Keeps the two ends of an output of any length in bounded memory.

use std::collections::VecDeque;

use orchestra_init::{HEAD_BYTES, TAIL_BYTES};

/// The first and the last bytes of an output, and how many there were.
#[derive(Default)]
pub struct Capture {
    head: Vec<u8>,
    tail: VecDeque<u8>,
    total: u64,
}

impl Capture {
    /// Takes the next bytes.
    pub fn push(&mut self, bytes: &[u8]) {
        self.total += bytes.len() as u64;
        let (head, rest) = bytes.split_at(bytes.len().min(HEAD_BYTES - self.head.len()));
        self.head.extend_from_slice(head);
        let rest = &rest[rest.len().saturating_sub(TAIL_BYTES)..];
        let excess = (self.tail.len() + rest.len()).saturating_sub(TAIL_BYTES);
        self.tail.drain(..excess);
        self.tail.extend(rest);
    }

    /// How many bytes were taken in all, how many of the kept ones are the start, and the kept ones.
    pub fn finish(mut self) -> (u64, u64, Vec<u8>) {
        let head = self.head.len() as u64;
        self.head.extend(self.tail);
        (self.total, head, self.head)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn short_output_is_kept_whole() {
        let mut capture = Capture::default();
        capture.push(b"hello ");
        capture.push(b"world");
        assert_eq!(capture.finish(), (11, 11, b"hello world".to_vec()));
    }

    #[test]
    fn long_output_keeps_both_ends_and_the_count() {
        let all: Vec<u8> = (0..1_000_000u32).map(|n| (n % 251) as u8).collect();
        for step in [1_000, 70_000, 999_999] {
            let mut capture = Capture::default();
            all.chunks(step).for_each(|chunk| capture.push(chunk));
            let (total, head, kept) = capture.finish();
            assert_eq!((total, head as usize, kept.len()), (1_000_000, HEAD_BYTES, HEAD_BYTES + TAIL_BYTES));
            assert_eq!(kept[..HEAD_BYTES], all[..HEAD_BYTES]);
            assert_eq!(kept[HEAD_BYTES..], all[all.len() - TAIL_BYTES..]);
        }
    }
}
