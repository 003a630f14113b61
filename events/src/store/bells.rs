//! Doorbells: who waits for a stream is told that it has grown, and nobody else is.

use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};

use tokio::sync::watch;

use crate::envelope::{Revision, StreamName};

/// Bells without a listener are looked for once there are this many, and then again at each doubling.
const SWEEP_FLOOR: usize = 64;

/// One bell per stream that somebody listens to.
#[derive(Debug, Default)]
pub(crate) struct StreamBells {
    inner: Mutex<Inner>,
}

#[derive(Debug, Default)]
struct Inner {
    senders: HashMap<StreamName, watch::Sender<Option<Revision>>>,
    sweep_at: usize,
    closed: bool,
}

impl StreamBells {
    fn inner(&self) -> std::sync::MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Listens to one stream. After [`Self::close`] the bell is dead from the start.
    pub fn listen(&self, stream: &StreamName) -> watch::Receiver<Option<Revision>> {
        let mut inner = self.inner();
        if inner.closed {
            return watch::channel(None).1;
        }
        if let Some(sender) = inner.senders.get(stream) {
            return sender.subscribe();
        }
        if inner.senders.len() >= inner.sweep_at.max(SWEEP_FLOOR) {
            inner.senders.retain(|_, sender| sender.receiver_count() > 0);
            inner.sweep_at = inner.senders.len() * 2;
        }
        let (sender, receiver) = watch::channel(None);
        inner.senders.insert(stream.clone(), sender);
        receiver
    }

    /// Rings the bells of these streams.
    pub fn ring<'a>(&self, grown: impl Iterator<Item = (&'a StreamName, Revision)>) {
        let mut inner = self.inner();
        if inner.senders.is_empty() {
            return;
        }
        for (stream, revision) in grown {
            let Some(sender) = inner.senders.get(stream) else { continue };
            if sender.receiver_count() == 0 {
                inner.senders.remove(stream);
            } else {
                sender.send_replace(Some(revision));
            }
        }
    }

    /// Ends every bell: who listens learns that nothing more will come.
    pub fn close(&self) {
        let mut inner = self.inner();
        inner.closed = true;
        inner.senders.clear();
    }

    #[cfg(test)]
    pub fn len(&self) -> usize {
        self.inner().senders.len()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bells_nobody_listens_to_are_forgotten() {
        let bells = StreamBells::default();
        let kept: StreamName = "task-kept".parse().unwrap();
        let listener = bells.listen(&kept);
        for number in 0..10_000 {
            drop(bells.listen(&format!("task-{number}").parse().unwrap()));
        }
        assert!(bells.len() <= 2 * SWEEP_FLOOR, "{} bells", bells.len());
        bells.ring([(&kept, Revision(3))].into_iter());
        assert_eq!(*listener.borrow(), Some(Revision(3)));
        drop(listener);
        bells.ring([(&kept, Revision(4))].into_iter());
        assert!(!bells.inner().senders.contains_key(&kept));
    }
}
