//! What models are saying right now: pieces of text that are shown and never stored.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

use orchestra_events::TaskId;
use tokio::sync::broadcast;

use crate::service::Delta;

/// Pieces that a slow reader may be behind before it loses some.
const BACKLOG: usize = 256;

/// One channel per task that somebody listens to.
#[derive(Debug, Clone, Default)]
pub struct Speech {
    channels: Arc<Mutex<HashMap<TaskId, broadcast::Sender<Delta>>>>,
}

impl Speech {
    /// Listens to a task.
    pub fn listen(&self, id: TaskId) -> broadcast::Receiver<Delta> {
        let mut channels = self.channels.lock().unwrap_or_else(PoisonError::into_inner);
        channels.retain(|_, channel| channel.receiver_count() > 0);
        channels.entry(id).or_insert_with(|| broadcast::channel(BACKLOG).0).subscribe()
    }

    /// Says something, if anybody listens.
    pub fn say(&self, id: TaskId, text: String) {
        let channels = self.channels.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(channel) = channels.get(&id) {
            // An error means that the last listener has just left.
            let _ = channel.send(Delta { text });
        }
    }
}
