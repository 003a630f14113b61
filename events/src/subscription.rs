//! Subscriptions: history, then live, with no gap and no repeat.
//!
//! A subscriber owns a cursor and reads from the store what lies after it. Bells only say that reading may be worth
//! while: the bell is marked as heard *before* the read, so that whatever is appended after the read began rings it
//! again. Nothing travels through a channel, so a slow subscriber loses nothing and repeats nothing; it is just late.

use std::collections::VecDeque;
use std::sync::Arc;

use tokio::sync::watch;

use crate::envelope::{Envelope, Position, Revision, StreamName};
use crate::store::{Direction, EventStore, Filter, StoreError};

/// Events that a subscription reads ahead of its consumer.
pub const READ_AHEAD: usize = 256;

/// What a subscription has to say.
#[derive(Debug, Clone)]
pub enum Delivery {
    /// The next event.
    Event(Envelope),
    /// Everything there was has been delivered; what follows is live. Said again after each time that the
    /// subscription had fallen a whole page behind.
    CaughtUp,
}

/// A reader that waits for more. All its methods may be cancelled without losing an event.
pub struct Subscription {
    store: Arc<dyn EventStore>,
    source: Source,
    ready: VecDeque<Envelope>,
    /// Whether [`Delivery::CaughtUp`] has been said since the subscription was last behind.
    live: bool,
}

enum Source {
    Stream { stream: StreamName, next: Revision, bell: watch::Receiver<Option<Revision>> },
    All { through: Position, filter: Filter, bell: watch::Receiver<Position> },
}

/// What one look into the store gave.
enum Look {
    /// Events are ready.
    Found,
    /// Nothing wanted so far, but there is more to look at.
    Further,
    /// Nothing up to the bell that was heard.
    Nothing,
}

impl Subscription {
    /// Subscribes to one stream after a revision (`None`: from its first event). The stream need not exist yet.
    pub fn stream(store: Arc<dyn EventStore>, stream: StreamName, after: Option<Revision>) -> Self {
        let bell = store.stream_bell(&stream);
        let next = after.map_or(Revision(0), |after| Revision(after.0.saturating_add(1)));
        Self::new(store, Source::Stream { stream, next, bell })
    }

    /// Subscribes to what the filter admits of the whole log, after a position.
    pub fn all(store: Arc<dyn EventStore>, after: Position, filter: Filter) -> Self {
        let bell = store.bell();
        Self::new(store, Source::All { through: after, filter, bell })
    }

    fn new(store: Arc<dyn EventStore>, source: Source) -> Self {
        Self { store, source, ready: VecDeque::new(), live: false }
    }

    /// The next event; waits for it.
    pub async fn next(&mut self) -> Result<Envelope, StoreError> {
        loop {
            if let Some(event) = self.ready.pop_front() {
                return Ok(event);
            }
            self.wait_for_events().await?;
        }
    }

    /// The next event, or the news that there are none for now; waits for either.
    pub async fn next_delivery(&mut self) -> Result<Delivery, StoreError> {
        loop {
            if let Some(event) = self.ready.pop_front() {
                return Ok(Delivery::Event(event));
            }
            match self.look().await? {
                Look::Found | Look::Further => {}
                Look::Nothing if !self.live => {
                    self.live = true;
                    return Ok(Delivery::CaughtUp);
                }
                Look::Nothing => self.listen().await?,
            }
        }
    }

    /// All events that are ready, at least one; waits for it. Projections commit once per batch.
    pub async fn next_batch(&mut self) -> Result<Vec<Envelope>, StoreError> {
        while self.ready.is_empty() {
            self.wait_for_events().await?;
        }
        Ok(std::mem::take(&mut self.ready).into())
    }

    /// Up to where a subscription to the whole log has looked, once everything that is ready has been taken: a
    /// checkpoint that spares a rare filter the events in between. `None` for a subscription to one stream and while
    /// events are ready.
    pub fn looked_through(&self) -> Option<Position> {
        match &self.source {
            Source::All { through, .. } if self.ready.is_empty() => Some(*through),
            Source::All { .. } | Source::Stream { .. } => None,
        }
    }

    async fn wait_for_events(&mut self) -> Result<(), StoreError> {
        loop {
            match self.look().await? {
                Look::Found => return Ok(()),
                Look::Further => {}
                Look::Nothing => {
                    self.live = true;
                    self.listen().await?;
                }
            }
        }
    }

    /// Marks the bell as heard and reads one page. State changes only after the read, so it may be cancelled.
    async fn look(&mut self) -> Result<Look, StoreError> {
        match &mut self.source {
            Source::Stream { stream, next, bell } => {
                let heard = *bell.borrow_and_update();
                if heard.is_some_and(|last| last < *next) {
                    return Ok(Look::Nothing);
                }
                let page = self.store.read_stream(stream, Some(*next), Direction::Forwards, READ_AHEAD).await?;
                let Some(last) = page.last() else { return Ok(Look::Nothing) };
                *next = Revision(last.revision.0 + 1);
                self.live &= page.len() < READ_AHEAD;
                self.ready.extend(page);
                Ok(Look::Found)
            }
            Source::All { through, filter, bell } => {
                let heard = *bell.borrow_and_update();
                if heard <= *through {
                    return Ok(Look::Nothing);
                }
                let page = self.store.read_matching(*through, filter, READ_AHEAD).await?;
                if page.through <= *through {
                    return Ok(Look::Nothing);
                }
                *through = page.through;
                self.live &= page.events.len() < READ_AHEAD;
                let found = if page.events.is_empty() { Look::Further } else { Look::Found };
                self.ready.extend(page.events);
                Ok(found)
            }
        }
    }

    /// Waits until the bell rings after it was last heard.
    async fn listen(&mut self) -> Result<(), StoreError> {
        let rung = match &mut self.source {
            Source::Stream { bell, .. } => bell.changed().await,
            Source::All { bell, .. } => bell.changed().await,
        };
        rung.map_err(|_| StoreError::Closed)
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};

    use futures_util::FutureExt;

    use super::*;
    use crate::store::conformance::{event, stream};
    use crate::store::memory::MemoryStore;
    use crate::store::wrapped::Wrapped;
    use crate::store::{Expected, Page};

    /// Counts the reads that reach the store.
    #[derive(Default)]
    struct Counting {
        inner: MemoryStore,
        reads: AtomicUsize,
        looked_at: AtomicUsize,
    }

    impl Wrapped for Counting {
        fn inner(&self) -> &dyn EventStore {
            &self.inner
        }

        fn on_read_stream(&self) {
            self.reads.fetch_add(1, Ordering::Relaxed);
        }

        fn on_page(&self, after: Position, page: &Page) {
            let looked_at = usize::try_from(page.through.0 - after.0).unwrap();
            self.looked_at.fetch_add(looked_at, Ordering::Relaxed);
        }
    }

    #[tokio::test]
    async fn ten_thousand_subscribers_cost_only_what_concerns_them() {
        let counting = Arc::new(Counting::default());
        let store: Arc<dyn EventStore> = Arc::clone(&counting) as _;
        let name = |number: usize| stream(&format!("task-{number}"));
        let mut subscribers: Vec<_> =
            (0..10_000).map(|number| Subscription::stream(Arc::clone(&store), name(number % 2_000), None)).collect();
        for subscriber in &mut subscribers {
            assert!(subscriber.next().now_or_never().is_none());
        }
        assert_eq!(counting.reads.load(Ordering::Relaxed), 10_000, "each looks once and then waits");
        store.append(&name(7), Expected::NoStream, vec![event("m", "0")]).await.unwrap();
        let woken = subscribers.iter_mut().filter_map(|subscriber| subscriber.next().now_or_never()).count();
        assert_eq!(woken, 5);
        // Waiting subscribers were asked again above, too: without a bell of their own each looks at its stream,
        // and only one that has heard a revision knows that there is nothing new.
        let before = counting.reads.load(Ordering::Relaxed);
        for number in [7, 2_007, 4_007, 6_007, 8_007] {
            assert!(subscribers[number].next().now_or_never().is_none());
        }
        assert_eq!(counting.reads.load(Ordering::Relaxed), before, "a bell that says nothing new costs no read");
    }

    #[tokio::test]
    async fn a_rare_filter_looks_at_each_event_once() {
        let counting = Arc::new(Counting::default());
        let store: Arc<dyn EventStore> = Arc::clone(&counting) as _;
        let mut rare = Subscription::all(Arc::clone(&store), Position::START, Filter::types(["rare"]));
        for number in 0..50 {
            let batch = (0..100).map(|_| event("common", "0")).collect();
            store.append(&stream(&format!("task-{number}")), Expected::NoStream, batch).await.unwrap();
            assert!(rare.next().now_or_never().is_none());
        }
        assert_eq!(counting.looked_at.load(Ordering::Relaxed), 5_000);
        assert_eq!(rare.looked_through(), Some(Position(5_000)));
        store.append(&stream("task-0"), Expected::Any, vec![event("rare", "0")]).await.unwrap();
        assert_eq!(rare.next().await.unwrap().position, Position(5_001));
        assert_eq!(counting.looked_at.load(Ordering::Relaxed), 5_001);
    }
}
