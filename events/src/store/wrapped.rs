//! A store that stands before another one and does one thing otherwise: for tests and measurements.

use async_trait::async_trait;
use tokio::sync::watch;

use super::{Appended, Direction, EventStore, Expected, Filter, Page, StoreError};
use crate::envelope::{Envelope, NewEvent, Position, Revision, StreamName};

/// What happens before the store inside is asked, or instead. Whatever is not said goes straight to it.
#[async_trait]
pub trait Wrapped: Send + Sync + 'static {
    /// The store inside.
    fn inner(&self) -> &dyn EventStore;

    /// An append.
    async fn on_append(
        &self,
        stream: &StreamName,
        expected: Expected,
        events: Vec<NewEvent>,
    ) -> Result<Appended, StoreError> {
        self.inner().append(stream, expected, events).await
    }

    /// A read of a stream is about to be made.
    fn on_read_stream(&self) {}

    /// A read of the log, of so many events after this place, is about to be made.
    fn on_read_all(&self, _after: Position, _limit: usize) {}

    /// A read of some of the log after this place was made.
    fn on_page(&self, _after: Position, _page: &Page) {}
}

#[async_trait]
impl<T: Wrapped> EventStore for T {
    async fn append(
        &self,
        stream: &StreamName,
        expected: Expected,
        events: Vec<NewEvent>,
    ) -> Result<Appended, StoreError> {
        self.on_append(stream, expected, events).await
    }

    async fn read_stream(
        &self,
        stream: &StreamName,
        from: Option<Revision>,
        direction: Direction,
        limit: usize,
    ) -> Result<Vec<Envelope>, StoreError> {
        self.on_read_stream();
        self.inner().read_stream(stream, from, direction, limit).await
    }

    async fn read_all(&self, after: Position, limit: usize) -> Result<Vec<Envelope>, StoreError> {
        self.on_read_all(after, limit);
        self.inner().read_all(after, limit).await
    }

    async fn read_matching(&self, after: Position, filter: &Filter, limit: usize) -> Result<Page, StoreError> {
        let page = self.inner().read_matching(after, filter, limit).await?;
        self.on_page(after, &page);
        Ok(page)
    }

    async fn streams(
        &self,
        category: &str,
        after: Option<&StreamName>,
        limit: usize,
    ) -> Result<Vec<StreamName>, StoreError> {
        self.inner().streams(category, after, limit).await
    }

    async fn keeps_apart(&self, stream: &StreamName) -> Result<bool, StoreError> {
        self.inner().keeps_apart(stream).await
    }

    async fn erase(&self, streams: &[StreamName]) -> Result<u64, StoreError> {
        self.inner().erase(streams).await
    }

    async fn head(&self) -> Result<Position, StoreError> {
        self.inner().head().await
    }

    fn bell(&self) -> watch::Receiver<Position> {
        self.inner().bell()
    }

    fn stream_bell(&self, stream: &StreamName) -> watch::Receiver<Option<Revision>> {
        self.inner().stream_bell(stream)
    }
}
