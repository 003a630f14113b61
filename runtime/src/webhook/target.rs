//! Where messages may be sent: `https://` to a name that leads into the open internet, and whatever lies within a network
//! that the operator has named.

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use orchestra_events::webhook::event::MAX_URL;
use reqwest::Url;
use reqwest::dns::{Addrs, Name, Resolving};

use crate::egress::{Network, Reason, Resolve, addresses, check, read_host};

/// An address that messages cannot be sent to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum TargetError {
    /// Too long, with spaces or control characters, or no URL.
    #[error("expected a URL such as https://receiver.example/hook of at most {MAX_URL} printable ASCII characters")]
    Malformed,
    /// Another scheme.
    #[error("a webhook's URL begins with https://")]
    Scheme,
    /// Not encrypted, and not within a network that the operator has named.
    #[error("a webhook's URL begins with https://; http:// is for the networks that the operator has named")]
    Plain,
    /// It names a user.
    #[error("no user and no password in the URL; messages are signed instead")]
    Userinfo,
    /// A fragment never leaves a client.
    #[error("no fragment in the URL")]
    Fragment,
    /// What it names, or leads to, is not allowed.
    #[error("{}", .0.told())]
    Forbidden(Reason),
}

/// An address that messages may be sent to, as far as it can be told without asking a name server.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Target {
    url: Url,
}

impl Target {
    /// The address.
    pub const fn url(&self) -> &Url {
        &self.url
    }

    /// Whether it is not encrypted.
    pub fn is_plain(&self) -> bool {
        self.url.scheme() == "http"
    }
}

/// Which addresses may be sent to.
#[derive(Clone)]
pub struct Targets {
    networks: Arc<[Network]>,
    resolver: Arc<dyn Resolve>,
}

impl std::fmt::Debug for Targets {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Targets").field("networks", &self.networks).finish_non_exhaustive()
    }
}

impl Targets {
    /// Besides the open internet, these networks.
    pub fn new(networks: Vec<Network>, resolver: Arc<dyn Resolve>) -> Self {
        Self { networks: networks.into(), resolver }
    }

    fn is_named(&self, address: IpAddr) -> bool {
        self.networks.iter().any(|network| network.contains(address)) && check(address, &self.networks).is_ok()
    }

    /// Reads an address.
    ///
    /// # Errors
    /// When it is none that messages are sent to, whatever its name leads to.
    pub fn read(&self, text: &str) -> Result<Target, TargetError> {
        if text.len() > MAX_URL || !text.bytes().all(|byte| byte.is_ascii_graphic()) || text.contains('\\') {
            return Err(TargetError::Malformed);
        }
        let url = Url::parse(text).map_err(|_| TargetError::Malformed)?;
        let plain = match url.scheme() {
            "https" => false,
            "http" => true,
            _ => return Err(TargetError::Scheme),
        };
        // The parser is lenient: what it read as a host must be what stands there.
        let authority = text.split_once("://").map(|(_, rest)| rest.split(['/', '?', '#']).next().unwrap_or_default());
        let authority = authority.filter(|authority| !authority.is_empty()).ok_or(TargetError::Malformed)?;
        if authority.contains('@') || !url.username().is_empty() || url.password().is_some() {
            return Err(TargetError::Userinfo);
        }
        if url.fragment().is_some() {
            return Err(TargetError::Fragment);
        }
        if url.port() == Some(0) {
            return Err(TargetError::Forbidden(Reason::BadPort));
        }
        let literal = match url.domain() {
            Some(name) => {
                read_host(name).map_err(TargetError::Forbidden)?;
                None
            }
            None => {
                let host = url.host_str().ok_or(TargetError::Malformed)?;
                let address = host.trim_start_matches('[').trim_end_matches(']');
                let address: IpAddr = address.parse().map_err(|_| TargetError::Malformed)?;
                Some((address, authority.starts_with(host)))
            }
        };
        match literal {
            // An address may be written in one way only, and only where the operator has named it.
            Some((_, false)) => Err(TargetError::Forbidden(Reason::AddressLiteral)),
            Some((address, true)) if !self.is_named(address) => {
                Err(TargetError::Forbidden(check(address, &self.networks).err().unwrap_or(Reason::AddressLiteral)))
            }
            Some((_, true)) => Ok(Target { url }),
            // Where a plain name leads is seen when it is connected to; without a network there is no such place.
            None if plain && self.networks.is_empty() => Err(TargetError::Plain),
            None => Ok(Target { url }),
        }
    }

    /// Asks where the name of an address leads just now. A name that leads nowhere yet is not refused: every attempt
    /// asks again.
    ///
    /// # Errors
    /// When it leads to where nothing is sent.
    pub async fn look(&self, target: &Target) -> Result<(), TargetError> {
        let Some(name) = target.url.domain() else { return Ok(()) };
        match self.addresses(name, target.is_plain()).await {
            Ok(_) | Err(Reason::Unresolvable) => Ok(()),
            Err(reason) if target.is_plain() && reason == Reason::NotAllowed => Err(TargetError::Plain),
            Err(reason) => Err(TargetError::Forbidden(reason)),
        }
    }

    /// The addresses of a name, all of them checked.
    async fn addresses(&self, name: &str, plain: bool) -> Result<Vec<IpAddr>, Reason> {
        let found = addresses(name, &*self.resolver, &self.networks).await?;
        if plain && !found.iter().all(|address| self.is_named(*address)) {
            return Err(Reason::NotAllowed);
        }
        Ok(found)
    }
}

/// The resolver of an HTTP client: what it answers was checked, and there is no second look-up.
pub(super) struct CheckedResolver {
    targets: Targets,
    plain: bool,
}

impl CheckedResolver {
    pub(super) const fn new(targets: Targets, plain: bool) -> Self {
        Self { targets, plain }
    }
}

/// Why a name was not connected to; found again in the client's error.
#[derive(Debug, thiserror::Error)]
#[error("{}", .0.told())]
pub(super) struct Refused(pub(super) Reason);

impl reqwest::dns::Resolve for CheckedResolver {
    fn resolve(&self, name: Name) -> Resolving {
        let (targets, plain) = (self.targets.clone(), self.plain);
        Box::pin(async move {
            let name = read_host(name.as_str()).map_err(Refused)?;
            match targets.addresses(&name, plain).await {
                Ok(found) => {
                    let addresses: Addrs = Box::new(found.into_iter().map(|address| SocketAddr::new(address, 0)));
                    Ok(addresses)
                }
                Err(reason) => Err(Refused(reason).into()),
            }
        })
    }
}

/// A resolver with fixed answers, for tests.
#[derive(Debug, Default)]
pub struct FixedResolver(pub std::collections::HashMap<String, Vec<IpAddr>>);

#[async_trait::async_trait]
impl Resolve for FixedResolver {
    async fn resolve(&self, host: &str) -> io::Result<Vec<IpAddr>> {
        self.0.get(host).cloned().ok_or_else(|| io::ErrorKind::NotFound.into())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn targets(networks: &[&str]) -> Targets {
        let names = [
            ("receiver.example", vec!["93.184.216.34"]),
            ("private.example", vec!["10.1.2.3"]),
            ("both.example", vec!["93.184.216.34", "127.0.0.1"]),
            ("mapped.example", vec!["::ffff:127.0.0.1"]),
            ("metadata.example", vec!["169.254.169.254"]),
        ];
        let names =
            names.map(|(name, found)| (name.to_owned(), found.iter().map(|text| text.parse().unwrap()).collect()));
        let networks = networks.iter().map(|text| text.parse().unwrap()).collect();
        Targets::new(networks, Arc::new(FixedResolver(names.into())))
    }

    #[test]
    fn an_address_is_read_in_one_way_only() {
        use TargetError::{Forbidden, Fragment, Malformed, Plain, Scheme, Userinfo};
        let open = targets(&[]);
        for (url, refused) in [
            ("https://receiver.example/hook?x=1", None),
            ("https://receiver.example:8443/", None),
            ("http://receiver.example/", Some(Plain)),
            ("ftp://receiver.example/", Some(Scheme)),
            ("file:///etc/passwd", Some(Scheme)),
            ("receiver.example/hook", Some(Malformed)),
            ("https://", Some(Malformed)),
            ("https:///hook", Some(Malformed)),
            ("https://receiver.example/a b", Some(Malformed)),
            ("https://receiver.example\\@127.0.0.1/", Some(Malformed)),
            ("https://receiver.example/\n", Some(Malformed)),
            ("https://user:pass@receiver.example/", Some(Userinfo)),
            ("https://@receiver.example/", Some(Userinfo)),
            ("https://receiver.example/#x", Some(Fragment)),
            ("https://receiver.example:0/", Some(Forbidden(Reason::BadPort))),
            ("https://receiver.example./", Some(Forbidden(Reason::BadHost))),
            ("https://localhost/", Some(Forbidden(Reason::LocalName))),
            ("https://LOCALHOST:8443/", Some(Forbidden(Reason::LocalName))),
            ("https://a.localhost/", Some(Forbidden(Reason::LocalName))),
            ("https://ip6-localhost/", Some(Forbidden(Reason::LocalName))),
            ("https://127.0.0.1/", Some(Forbidden(Reason::LoopbackAddress))),
            ("https://127.1/", Some(Forbidden(Reason::AddressLiteral))),
            ("https://2130706433/", Some(Forbidden(Reason::AddressLiteral))),
            ("https://0x7f000001/", Some(Forbidden(Reason::AddressLiteral))),
            ("https://0177.0.0.1/", Some(Forbidden(Reason::AddressLiteral))),
            ("https://%31%32%37.0.0.1/", Some(Forbidden(Reason::AddressLiteral))),
            ("https://10.0.0.1/", Some(Forbidden(Reason::PrivateAddress))),
            ("https://169.254.169.254/latest/", Some(Forbidden(Reason::MetadataAddress))),
            ("https://93.184.216.34/", Some(Forbidden(Reason::AddressLiteral))),
            ("https://[::1]/", Some(Forbidden(Reason::LoopbackAddress))),
            ("https://[::ffff:127.0.0.1]/", Some(Forbidden(Reason::AddressLiteral))),
            ("https://[::ffff:a9fe:a9fe]/", Some(Forbidden(Reason::EmbeddedAddress))),
            ("https://[64:ff9b::7f00:1]/", Some(Forbidden(Reason::EmbeddedAddress))),
            ("https://[fd00:ec2::254]/", Some(Forbidden(Reason::MetadataAddress))),
            ("https://[fe80::1%25eth0]/", Some(Malformed)),
        ] {
            assert_eq!(open.read(url).err(), refused, "{url}");
        }
        let long = format!("https://receiver.example/{}", "x".repeat(MAX_URL));
        assert_eq!(open.read(&long).err(), Some(Malformed));

        let named = targets(&["10.1.0.0/16", "127.0.0.0/8"]);
        for (url, refused) in [
            ("http://127.0.0.1:8080/hook", None),
            ("https://10.1.2.3/", None),
            ("http://2130706433/", Some(Forbidden(Reason::AddressLiteral))),
            ("http://10.2.0.1/", Some(Forbidden(Reason::PrivateAddress))),
            ("http://169.254.169.254/", Some(Forbidden(Reason::MetadataAddress))),
            ("http://[::ffff:7f00:1]/", Some(Forbidden(Reason::EmbeddedAddress))),
            ("http://93.184.216.34/", Some(Forbidden(Reason::AddressLiteral))),
            ("http://localhost/", Some(Forbidden(Reason::LocalName))),
            ("http://private.example/", None),
        ] {
            assert_eq!(named.read(url).err(), refused, "{url}");
        }
    }

    #[tokio::test]
    async fn where_a_name_leads_is_checked_address_by_address() {
        use TargetError::{Forbidden, Plain};
        let (open, named) = (targets(&[]), targets(&["10.1.0.0/16"]));
        for (url, refused) in [
            ("https://receiver.example/", None),
            ("https://not-there-yet.example/", None),
            ("https://private.example/", Some(Forbidden(Reason::PrivateAddress))),
            ("https://both.example/", Some(Forbidden(Reason::LoopbackAddress))),
            ("https://mapped.example/", Some(Forbidden(Reason::EmbeddedAddress))),
            ("https://metadata.example/", Some(Forbidden(Reason::MetadataAddress))),
        ] {
            let target = open.read(url).unwrap();
            assert_eq!(open.look(&target).await.err(), refused, "{url}");
        }
        for (url, refused) in [
            ("https://private.example/", None),
            ("http://private.example/", None),
            ("http://receiver.example/", Some(Plain)),
            ("https://metadata.example/", Some(Forbidden(Reason::MetadataAddress))),
        ] {
            let target = named.read(url).unwrap();
            assert_eq!(named.look(&target).await.err(), refused, "{url}");
        }
    }
}
