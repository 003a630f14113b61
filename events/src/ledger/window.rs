//! Civil days and months: which one a call counts to, what stands in it, and when it ends.

use std::collections::{BTreeMap, HashMap};

use jiff::civil::Date;
use jiff::tz::TimeZone;
use jiff::{Timestamp, ToSpan};

use super::event::Amount;
use super::exhausted::Period;

/// Windows of one scope and period that are kept at most, those with open reservations aside. Two are needed; more
/// only come to be when the clock was wrong.
pub const MOST_WINDOWS: usize = 8;

/// Time zones by their IANA names. Looking one up reads a file, so whoever makes a command brings those that matter.
#[derive(Debug, Clone, Default)]
pub struct Zones(HashMap<String, TimeZone>);

impl Zones {
    /// UTC alone.
    pub fn utc() -> Self {
        Self::default()
    }

    /// Makes a zone known.
    pub fn insert(&mut self, name: impl Into<String>, zone: TimeZone) {
        self.0.insert(name.into(), zone);
    }

    /// Whether it is known.
    pub fn knows(&self, name: &str) -> bool {
        self.0.contains_key(name)
    }

    /// The zone of this name; UTC for one that this machine does not know (any more).
    pub fn get(&self, name: Option<&str>) -> TimeZone {
        name.and_then(|name| self.0.get(name)).cloned().unwrap_or(TimeZone::UTC)
    }
}

/// When the window of this date ends: the next civil midnight, or what comes for it where that one does not exist.
/// `None` for a task and a campaign, which do not end, and at the end of time.
pub fn resets_at(period: Period, date: Date, zone: &TimeZone) -> Option<Timestamp> {
    following(period, date)?.to_zoned(zone.clone()).ok().map(|midnight| midnight.timestamp())
}

/// The first date after the window of this one.
pub(super) fn following(period: Period, date: Date) -> Option<Date> {
    match period {
        Period::Task | Period::Campaign => None,
        Period::Day => date.tomorrow().ok(),
        Period::Month => date.first_of_month().checked_add(1.month()).ok(),
    }
}

/// What stands in one window.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Window {
    pub spent: Amount,
    pub reserved: Amount,
    /// Reservations in it.
    pub open: u32,
    /// Highest part of the cap that was announced, in percent: of dollars, of tokens.
    pub reached: [u8; 2],
}

impl Window {
    pub fn reserve(&mut self, amount: Amount) {
        self.reserved += amount;
        self.open += 1;
    }

    pub fn free(&mut self, amount: Amount) {
        self.reserved = self.reserved.saturating_sub(amount);
        self.open = self.open.saturating_sub(1);
    }
}

/// The windows of one scope over one period, by date (a month by its first day).
///
/// Kept are the one in use, the one in use before it, all later ones (which there are only when the clock went back) and
/// all with open reservations. What is forgotten is never opened again, or its cap could be spent twice.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Windows {
    pub kept: BTreeMap<Date, Window>,
    /// The latest date of a window that is no longer kept.
    pub forgotten: Option<Date>,
}

impl Windows {
    /// Whether a window of this date was forgotten, or would lie before one that was.
    pub fn is_forgotten(&self, date: Date) -> bool {
        self.forgotten.is_some_and(|forgotten| date <= forgotten)
    }

    /// The window of this date, which is now the one in use.
    pub fn open(&mut self, date: Date) -> &mut Window {
        let before = self.kept.len();
        self.kept.entry(date).or_default();
        if self.kept.len() > before {
            self.forget(date);
        }
        self.kept.entry(date).or_default()
    }

    fn forget(&mut self, in_use: Date) {
        let oldest = self.kept.range(..=in_use).rev().take(2).last().map_or(in_use, |(date, _)| *date);
        let mut surplus = self.kept.len().saturating_sub(MOST_WINDOWS);
        let forgotten = &mut self.forgotten;
        self.kept.retain(|date, window| {
            let keep = window.open > 0 || *date == in_use || (*date >= oldest && surplus == 0);
            surplus = surplus.saturating_sub(1);
            if !keep {
                *forgotten = (*forgotten).max(Some(*date));
            }
            keep
        });
    }
}

#[cfg(test)]
mod tests {
    use jiff::civil::date;

    use super::*;

    fn zone(name: &str) -> TimeZone {
        TimeZone::get(name).expect("the system's time zones")
    }

    #[test]
    fn a_day_ends_at_its_zones_own_midnight() {
        let at = |zone_name: &str, period, day: Date| resets_at(period, day, &zone(zone_name)).unwrap().to_string();
        assert_eq!(at("UTC", Period::Day, date(2026, 12, 31)), "2027-01-01T00:00:00Z");
        assert_eq!(at("UTC", Period::Month, date(2026, 12, 31)), "2027-01-01T00:00:00Z");
        // The clocks go forward on the 29th of March 2026 and back on the 25th of October.
        assert_eq!(at("Europe/Zurich", Period::Day, date(2026, 3, 28)), "2026-03-28T23:00:00Z");
        assert_eq!(at("Europe/Zurich", Period::Day, date(2026, 3, 29)), "2026-03-29T22:00:00Z");
        assert_eq!(at("Europe/Zurich", Period::Month, date(2026, 3, 1)), "2026-03-31T22:00:00Z");
        assert_eq!(at("Europe/Zurich", Period::Day, date(2026, 10, 25)), "2026-10-25T23:00:00Z");
        // There was no midnight in Beirut on that day: the clock went from 23:59 to 01:00.
        assert_eq!(at("Asia/Beirut", Period::Day, date(2022, 3, 26)), "2022-03-26T22:00:00Z");
        // And two of them in Havana: the day ends before the first.
        assert_eq!(at("America/Havana", Period::Day, date(2026, 10, 31)), "2026-11-01T04:00:00Z");
        assert_eq!(resets_at(Period::Task, date(2026, 1, 1), &TimeZone::UTC), None);
        assert_eq!(resets_at(Period::Day, Date::MAX, &TimeZone::UTC), None);
    }

    #[test]
    fn two_windows_are_kept_and_a_forgotten_one_stays_shut() {
        let mut windows = Windows::default();
        for day in 1..=5 {
            windows.open(date(2026, 1, day)).spent += Amount { tokens: 1, ..Amount::ZERO };
        }
        assert_eq!(windows.kept.keys().copied().collect::<Vec<_>>(), [date(2026, 1, 4), date(2026, 1, 5)]);
        assert!(windows.is_forgotten(date(2026, 1, 3)) && windows.is_forgotten(date(2020, 1, 1)));
        assert!(!windows.is_forgotten(date(2026, 1, 4)));
    }

    #[test]
    fn a_window_with_a_reservation_is_kept_however_old() {
        let mut windows = Windows::default();
        windows.open(date(2026, 1, 1)).reserve(Amount::ZERO);
        for day in 2..=9 {
            windows.open(date(2026, 1, day));
        }
        assert!(windows.kept.contains_key(&date(2026, 1, 1)));
        assert_eq!(windows.kept.len(), 3);
    }

    #[test]
    fn a_clock_that_was_wrong_for_a_while_costs_no_windows() {
        let mut windows = Windows::default();
        windows.open(date(2026, 1, 1));
        windows.open(date(2030, 1, 1));
        for day in 1..=4 {
            assert!(!windows.is_forgotten(date(2026, 1, day)));
            windows.open(date(2026, 1, day));
        }
        assert!(windows.kept.contains_key(&date(2030, 1, 1)), "what was spent then counts then");
        assert_eq!(windows.kept.len(), 3);
        // A clock that runs wild is bounded all the same.
        for year in 0..40 {
            windows.open(date(3000 - year, 1, 1));
        }
        assert!(windows.kept.len() <= MOST_WINDOWS + 1, "{}", windows.kept.len());
    }
}
