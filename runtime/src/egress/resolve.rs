//! Names become addresses on the host, and only what was checked is connected to: there is no second look-up that could
//! say something else.

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use async_trait::async_trait;
use tokio::net::TcpStream;
use tokio::time::timeout;

use super::address::{Network, check};
use super::authority::Authority;
use super::reason::Reason;

/// The longest wait for a name server.
const RESOLVE_WAIT: Duration = Duration::from_secs(10);

/// The longest wait for one address to answer.
const CONNECT_WAIT: Duration = Duration::from_secs(10);

/// Most addresses of a name that are tried.
const MAX_TRIED: usize = 3;

/// Most addresses that a name may have. More is no answer that anybody needs.
const MAX_ADDRESSES: usize = 64;

/// Who knows the addresses of names.
#[async_trait]
pub trait Resolve: Send + Sync {
    /// Every address of a name.
    ///
    /// # Errors
    /// When the name has none, or nobody answers.
    async fn resolve(&self, host: &str) -> io::Result<Vec<IpAddr>>;
}

/// The host's own resolver: its hosts file and its name servers.
#[derive(Debug, Clone, Copy, Default)]
pub struct SystemResolver;

#[async_trait]
impl Resolve for SystemResolver {
    async fn resolve(&self, host: &str) -> io::Result<Vec<IpAddr>> {
        Ok(tokio::net::lookup_host((host, 0)).await?.map(|address| address.ip()).collect())
    }
}

/// The addresses of a name, all of them checked: one that is forbidden condemns the name.
///
/// # Errors
/// When there is none, or one that nobody may connect to.
pub(crate) async fn addresses(host: &str, resolver: &dyn Resolve, networks: &[Network]) -> Result<Vec<IpAddr>, Reason> {
    let found = timeout(RESOLVE_WAIT, resolver.resolve(host)).await;
    let Ok(Ok(mut found)) = found else { return Err(Reason::Unresolvable) };
    if found.is_empty() || found.len() > MAX_ADDRESSES {
        return Err(Reason::Unresolvable);
    }
    found.iter().try_for_each(|address| check(*address, networks))?;
    let mut seen = std::collections::BTreeSet::new();
    found.retain(|address| seen.insert(*address));
    Ok(found)
}

/// A connection to one of the checked addresses.
pub(super) async fn connect(target: &Authority, addresses: &[IpAddr]) -> Result<TcpStream, Reason> {
    for address in addresses.iter().take(MAX_TRIED) {
        if let Ok(Ok(socket)) = timeout(CONNECT_WAIT, TcpStream::connect(SocketAddr::new(*address, target.port))).await
        {
            return Ok(socket);
        }
    }
    Err(Reason::Unreachable)
}
