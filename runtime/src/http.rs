//! HTTP clients that are built when they are first needed.
//!
//! Building one reads and parses every certificate that the system trusts, which takes some fifty milliseconds of
//! processor time: longer than all the rest of a server's start.

use std::fmt;
use std::sync::Arc;

use reqwest::{Client, ClientBuilder};
use tokio::sync::OnceCell;

type Settings = dyn Fn(ClientBuilder) -> ClientBuilder + Send + Sync;

/// A client, or how to build it. Clones share the client and its connections.
#[derive(Clone)]
pub(crate) struct HttpClient {
    client: Arc<OnceCell<Client>>,
    settings: Arc<Settings>,
}

impl fmt::Debug for HttpClient {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("HttpClient").field(&self.client).finish()
    }
}

impl HttpClient {
    /// A client with these settings.
    pub fn new(settings: impl Fn(ClientBuilder) -> ClientBuilder + Send + Sync + 'static) -> Self {
        Self { client: Arc::default(), settings: Arc::new(settings) }
    }

    /// The client. The error is what the TLS library says when it does not come up.
    pub async fn get(&self) -> Result<&Client, String> {
        let settings = Arc::clone(&self.settings);
        let build = move || settings(Client::builder()).build().map_err(|error| error.to_string());
        let built = async { tokio::task::spawn_blocking(build).await.map_err(|error| error.to_string())? };
        self.client.get_or_try_init(|| built).await
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_client_is_built_once_and_shared() {
        let one = HttpClient::new(ClientBuilder::no_proxy);
        let two = one.clone();
        assert!(two.client.get().is_none());
        one.get().await.expect("a client");
        assert!(two.client.get().is_some());
    }
}
