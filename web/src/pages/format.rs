//! Money, numbers, times and durations as people read them.

use jiff::Timestamp;
use orchestra_events::NanoUsd;

const NANOS_PER_CENT: i64 = 10_000_000;
/// A hundredth of a cent: the finest step that a page shows.
const NANOS_PER_STEP: i64 = 100_000;

/// Dollars: two places from one dollar on, up to four below, rounded half up (`$2.00`, `$0.4217`, `$0.05`).
pub fn usd(amount: NanoUsd) -> String {
    let nanos = amount.nanos();
    let (sign, nanos) = if nanos < 0 { ("-", nanos.saturating_neg()) } else { ("", nanos) };
    if nanos >= 100 * NANOS_PER_CENT {
        let cents = (nanos + NANOS_PER_CENT / 2) / NANOS_PER_CENT;
        return format!("{sign}${}.{:02}", thousands((cents / 100).unsigned_abs()), cents % 100);
    }
    let steps = (nanos + NANOS_PER_STEP / 2) / NANOS_PER_STEP;
    if steps == 0 && nanos > 0 {
        return format!("{sign}<$0.0001");
    }
    let mut text = format!("{sign}${}.{:04}", steps / 10_000, steps % 10_000);
    for _ in 0..2 {
        if text.ends_with('0') {
            text.pop();
        }
    }
    text
}

/// `1234567` as `1,234,567`.
pub fn thousands(number: u64) -> String {
    let digits = number.to_string();
    let mut text = String::with_capacity(digits.len() + digits.len() / 3);
    for (index, digit) in digits.chars().enumerate() {
        if index > 0 && (digits.len() - index).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

/// `84 ms`, `1.2 s`, `3 min 05 s`, `2 h 10 min`.
pub fn milliseconds(ms: u64) -> String {
    match ms {
        0..1_000 => format!("{ms} ms"),
        1_000..60_000 => format!("{}.{} s", ms / 1_000, ms % 1_000 / 100),
        _ => seconds(ms / 1_000),
    }
}

/// `42 s`, `3 min 05 s`, `2 h 10 min`, `3 d 4 h`.
pub fn seconds(seconds: u64) -> String {
    match seconds {
        0..60 => format!("{seconds} s"),
        60..3_600 => format!("{} min {:02} s", seconds / 60, seconds % 60),
        3_600..86_400 => format!("{} h {:02} min", seconds / 3_600, seconds % 3_600 / 60),
        _ => format!("{} d {} h", seconds / 86_400, seconds % 86_400 / 3_600),
    }
}

/// The time between two moments, never negative.
pub fn between(from: Timestamp, to: Timestamp) -> String {
    seconds(u64::try_from(to.as_second() - from.as_second()).unwrap_or(0))
}

/// How long ago, in one unit: `just now`, `42 s ago`, `5 min ago`, `3 h ago`, `2 d ago`.
pub fn ago(then: Timestamp, now: Timestamp) -> String {
    match u64::try_from(now.as_second() - then.as_second()).unwrap_or(0) {
        0..5 => "just now".to_owned(),
        passed @ 5..60 => format!("{passed} s ago"),
        passed @ 60..3_600 => format!("{} min ago", passed / 60),
        passed @ 3_600..86_400 => format!("{} h ago", passed / 3_600),
        passed => format!("{} d ago", passed / 86_400),
    }
}

/// RFC 3339 to the second, for `datetime` attributes.
pub fn iso(time: Timestamp) -> String {
    time.strftime("%Y-%m-%dT%H:%M:%SZ").to_string()
}

/// `14:03:22`, UTC.
pub fn clock(time: Timestamp) -> String {
    time.strftime("%H:%M:%S").to_string()
}

/// `22 Nov 2026, 14:03 UTC`.
pub fn moment(time: Timestamp) -> String {
    time.strftime("%-d %b %Y, %H:%M UTC").to_string()
}

/// `512 bytes`, `32.0 KiB`, `1.5 MiB`.
pub fn bytes(bytes: u64) -> String {
    match bytes {
        0..1_024 => format!("{bytes} bytes"),
        1_024..1_048_576 => format!("{}.{} KiB", bytes / 1_024, bytes % 1_024 * 10 / 1_024),
        _ => format!("{}.{} MiB", bytes / 1_048_576, bytes % 1_048_576 * 10 / 1_048_576),
    }
}

/// `1 file`, `2 files`.
pub fn count(number: u64, one: &str, many: &str) -> String {
    format!("{} {}", thousands(number), if number == 1 { one } else { many })
}

/// The beginning of a text that is no longer than `limit` bytes, cut between characters; and how many bytes are left out.
pub fn head_of(text: &str, limit: usize) -> (&str, usize) {
    if text.len() <= limit {
        return (text, 0);
    }
    let end = (0..=limit).rev().find(|end| text.is_char_boundary(*end)).unwrap_or(0);
    (&text[..end], text.len() - end)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn money_reads_well_at_every_size() {
        for (nanos, text) in [
            (0, "$0.00"),
            (1, "<$0.0001"),
            (3_400_000, "$0.0034"),
            (50_000_000, "$0.05"),
            (421_700_000, "$0.4217"),
            (999_960_000, "$1.00"),
            (2_000_000_000, "$2.00"),
            (1_234_567_890_000, "$1,234.57"),
        ] {
            assert_eq!(usd(NanoUsd::from_nanos(nanos)), text, "{nanos}");
        }
    }

    #[test]
    fn durations_and_sizes_read_well() {
        assert_eq!(milliseconds(84), "84 ms");
        assert_eq!(milliseconds(1_250), "1.2 s");
        assert_eq!(seconds(185), "3 min 05 s");
        assert_eq!(seconds(90_000), "1 d 1 h");
        assert_eq!(bytes(33_000), "32.2 KiB");
        assert_eq!(thousands(1_234_567), "1,234,567");
    }

    #[test]
    fn a_cut_text_is_still_text() {
        assert_eq!(head_of("größer", 3), ("gr", 6));
        assert_eq!(head_of("short", 10), ("short", 0));
    }
}
