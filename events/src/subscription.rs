//! Subscriptions: history, then live, with no gap and no repeat.
