//! Why a connection was not let through, in words that stay: they stand in the log, in metrics and in the answer.

use std::fmt;

macro_rules! reasons {
    ($($(#[doc = $doc:literal])+ $name:ident = $code:literal, $status:literal, $told:literal;)+) => {
        /// Why a connection was refused, cut or came to nothing.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
        pub enum Reason {
            $($(#[doc = $doc])+ $name,)+
        }

        impl Reason {
            /// Every reason.
            pub const ALL: &'static [Self] = &[$(Self::$name,)+];

            /// The stable name.
            pub const fn code(self) -> &'static str {
                match self { $(Self::$name => $code,)+ }
            }

            /// The status of the answer, where one can still be given.
            pub const fn status(self) -> u16 {
                match self { $(Self::$name => $status,)+ }
            }

            /// What a person in the sandbox is told.
            pub const fn told(self) -> &'static str {
                match self { $(Self::$name => $told,)+ }
            }
        }
    };
}

reasons! {
    /// Not HTTP/1.x as RFC 9112 writes it, in strictly one reading.
    BadRequest = "bad-request", 400, "the request is not plain HTTP/1.1";
    /// Its head is longer than allowed, or has too many lines.
    HeadTooLarge = "head-too-large", 431, "the head of the request is too large";
    /// Its head did not come in time.
    HeadTimeout = "head-timeout", 408, "the head of the request did not come in time";
    /// A method that is not passed on.
    BadMethod = "bad-method", 405, "this method is not passed on";
    /// Neither `host:port` after CONNECT nor a whole `http://` URL.
    BadTarget = "bad-target", 400, "a proxy takes CONNECT host:port, or a whole http:// URL";
    /// A whole `https://` URL: what is inside would be read here.
    HttpsInClear = "https-in-clear", 400, "https goes through CONNECT";
    /// Another scheme.
    BadScheme = "bad-scheme", 400, "only http and https are passed on";
    /// A user name in the authority.
    Userinfo = "userinfo", 400, "a user name does not belong into the address";
    /// No host name: characters, lengths, an empty label or a dot at the end.
    BadHost = "bad-host", 400, "this is no host name";
    /// An address where a name belongs, in whatever notation.
    AddressLiteral = "address-literal", 403, "addresses are not allowed, names are";
    /// A name that means this very machine.
    LocalName = "local-name", 403, "this name means the machine itself";
    /// No port, or none that exists.
    BadPort = "bad-port", 400, "this is no port";
    /// `Host` is absent, twice there, or names something else.
    HostMismatch = "host-mismatch", 400, "the Host header and the URL name different hosts";
    /// How long the body is can be read in two ways.
    BadFraming = "bad-framing", 400, "the length of the body is not clear";
    /// Its body breaks its own framing.
    BadBody = "bad-body", 400, "the body breaks its own framing";
    /// Another protocol is asked for.
    Upgrade = "upgrade", 400, "no other protocol is spoken on this connection";
    /// An expectation other than `100-continue`.
    BadExpectation = "bad-expectation", 417, "this expectation is not met here";
    /// The host is not on the list.
    NotAllowed = "not-allowed", 403, "this host is not on the task's list";
    /// The host is on the list, this port of it is not.
    PortNotAllowed = "port-not-allowed", 403, "this host is on the task's list, but not with this port";
    /// Plain HTTP to the port of TLS.
    PlainOnTlsPort = "plain-on-tls-port", 403, "port 443 speaks TLS";
    /// The name has no address.
    Unresolvable = "unresolvable", 502, "the name does not resolve";
    /// It resolves to an address of a private network.
    PrivateAddress = "private-address", 403, "the name leads into a private network";
    /// It resolves to this host.
    LoopbackAddress = "loopback-address", 403, "the name leads to the machine itself";
    /// It resolves to an address of the link.
    LinkLocalAddress = "link-local-address", 403, "the name leads to the local link";
    /// It resolves to where clouds hand out credentials.
    MetadataAddress = "metadata-address", 403, "the name leads to a metadata service";
    /// It resolves to many.
    MulticastAddress = "multicast-address", 403, "the name leads to a group of machines";
    /// It resolves to an address that hides another one.
    EmbeddedAddress = "embedded-address", 403, "the name leads to an address within an address";
    /// It resolves to an address that is nobody's.
    ReservedAddress = "reserved-address", 403, "the name leads to a reserved address";
    /// Nobody answers there.
    Unreachable = "unreachable", 502, "the host cannot be reached";
    /// What came after CONNECT is not TLS.
    NotTls = "not-tls", 403, "only TLS goes through CONNECT";
    /// The beginning of TLS did not come in time.
    HelloTimeout = "hello-timeout", 408, "the beginning of TLS did not come in time";
    /// The beginning of TLS is longer than allowed.
    HelloTooLarge = "hello-too-large", 403, "the beginning of TLS is too long";
    /// The beginning of TLS is spread over several records.
    HelloFragmented = "hello-fragmented", 403, "the beginning of TLS is in pieces";
    /// The beginning of TLS does not read.
    BadHello = "bad-hello", 403, "the beginning of TLS does not read";
    /// TLS names no server.
    NoServerName = "no-server-name", 403, "TLS names no server";
    /// TLS names another server than CONNECT did.
    ServerNameMismatch = "server-name-mismatch", 403, "TLS names another server than CONNECT";
    /// TLS may name its server out of sight.
    EncryptedHello = "encrypted-hello", 403, "the encrypted Client Hello hides the server's name";
    /// More connections than a sandbox may have.
    TooManyConnections = "too-many-connections", 503, "too many connections; let some end";
    /// More bytes than the connection or the task may move.
    ByteLimit = "byte-limit", 403, "the limit of bytes is reached";
    /// Nothing moved for too long.
    Idle = "idle", 408, "nothing moved for too long";
    /// It was open for too long.
    TooLong = "too-long", 408, "the connection was open for too long";
    /// The server's answer is not plain HTTP/1.1.
    BadResponse = "bad-response", 502, "the server's answer is not plain HTTP/1.1";
}

impl Reason {
    /// The host was allowed, and is to blame itself.
    pub const fn is_failure(self) -> bool {
        matches!(self, Self::Unresolvable | Self::Unreachable | Self::BadResponse)
    }
}

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.code())
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn names_are_unique_and_fit_into_events_and_metrics() {
        let codes: BTreeSet<_> = Reason::ALL.iter().map(|reason| reason.code()).collect();
        assert_eq!(codes.len(), Reason::ALL.len());
        let fits = |code: &&str| code.len() <= 32 && code.bytes().all(|byte| byte.is_ascii_lowercase() || byte == b'-');
        assert!(codes.iter().all(fits));
    }
}
