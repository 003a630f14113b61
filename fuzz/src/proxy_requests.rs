//! What comes through a sandbox's way out, from either end: heads of requests and answers, bodies in chunks, the beginning of
//! TLS. An input is read as each of them.

use orchestra_runtime::egress::fuzzing::{
    Answer, Asked, Authority, Chunks, Framing, Request, aimed_at, end_of, read_host, server_name, shown,
};
use orchestra_runtime::egress::{MAX_FIELDS, MAX_FIRST_LINE, MAX_HEAD, MAX_HELLO, MAX_HOST, Reason};

/// What a head that is written anew may be longer by than the one that was read: a space after each colon, a slash, a `Host` in
/// place of another, the version, and `connection: close`.
const MAX_GROWTH: usize = MAX_FIELDS + 64;
/// Hellos up to this length are cut at every place.
const MAX_CUT: usize = 1024;

/// Reads what a sandbox, or a server that it reaches, sends.
pub fn proxy_requests(input: &[u8]) {
    authority(input);
    hello(input);
    chunks(input);
    let Some(end) = end_of(input) else { return };
    let (head, body) = input.split_at(end);
    assert_eq!((end_of(head), end_of(&head[..end - 1])), (Some(end), None));
    chunks(body);
    if head.len() > MAX_HEAD {
        return;
    }
    let seen = shown(aimed_at(head));
    assert!(seen.bytes().all(|byte| byte.is_ascii_graphic()) && seen.len() <= MAX_HOST + 3, "{seen:?}");
    match Asked::read(head) {
        Ok(Asked::Connect(target)) => check_authority(&target),
        Ok(Asked::Forward(request)) => forwarded(&request, head),
        Err(_) => {}
    }
    for to_head in [false, true] {
        if let Ok(answer) = Answer::read(head, to_head) {
            answered(&answer, to_head, head);
        }
    }
}

fn check_authority(authority: &Authority) {
    assert!(authority.port > 0 && authority.host.len() <= MAX_HOST);
    assert_eq!(read_host(&authority.host).as_deref(), Ok(authority.host.as_str()));
    let written = format!("{}:{}", authority.host, authority.port);
    assert_eq!(Authority::read(written.as_bytes(), None).as_ref(), Ok(authority));
    // What no resolver and no library takes for an address.
    assert!(authority.host.parse::<std::net::IpAddr>().is_err());
}

fn authority(input: &[u8]) {
    for default in [None, Some(80)] {
        if let Ok(authority) = Authority::read(input, default) {
            check_authority(&authority);
        }
    }
}

/// The lines of a head that we have written: in it there is one way to read each.
fn lines(head: &[u8]) -> Vec<&str> {
    assert_eq!(end_of(head), Some(head.len()), "one head, and whole");
    let plain = |byte: u8| byte == b'\t' || (byte >= b' ' && byte != 0x7f);
    let (text, mut all) = (&head[..head.len() - 4], Vec::new());
    for line in text.split(|byte| *byte == b'\n') {
        let line = line.strip_suffix(b"\r").unwrap_or(line);
        assert!(
            line.iter().copied().all(plain),
            "a control character is passed on: {:?}",
            line.escape_ascii().to_string()
        );
        // Only what is ASCII is compared.
        all.push(std::str::from_utf8(line).unwrap_or("x-other: x"));
    }
    assert!(all[0].len() <= MAX_FIRST_LINE && all.len() <= MAX_FIELDS + 3);
    all
}

/// The values of a field.
fn values<'a>(lines: &[&'a str], name: &str) -> Vec<&'a str> {
    let fields = lines[1..].iter().filter_map(|line| line.split_once(": "));
    fields.filter(|(field, _)| field.eq_ignore_ascii_case(name)).map(|(_, value)| value).collect()
}

/// How a body ends, read off the lines as any reader behind us would.
fn check_framing(lines: &[&str], framing: Framing) {
    let (lengths, encodings) = (values(lines, "content-length"), values(lines, "transfer-encoding"));
    match framing {
        Framing::Length(length) => {
            assert_eq!((lengths.len(), encodings.len()), (1, 0), "{lines:?}");
            assert_eq!(lengths[0].parse(), Ok(length));
        }
        Framing::Chunked => assert!(lengths.is_empty() && encodings.len() == 1, "{lines:?}"),
        Framing::None | Framing::Close => assert!(lengths.is_empty() && encodings.is_empty(), "{lines:?}"),
    }
}

fn check_hops(lines: &[&str]) {
    assert_eq!(values(lines, "connection"), ["close"], "{lines:?}");
    for name in ["proxy-authorization", "proxy-connection", "keep-alive", "te", "trailer", "upgrade", "close"] {
        assert!(values(lines, name).is_empty(), "{name} is passed on: {lines:?}");
    }
}

fn forwarded(request: &Request, head: &[u8]) {
    check_authority(&request.target);
    assert!(request.head.len() <= head.len() + MAX_GROWTH);
    let lines = lines(&request.head);
    let words: Vec<_> = lines[0].split(' ').collect();
    let [method, path, "HTTP/1.1"] = words[..] else { panic!("{lines:?}") };
    assert!(path.starts_with('/') && path.bytes().all(|byte| byte.is_ascii_graphic()), "{path:?}");
    assert_eq!(request.is_head, method == "HEAD");
    let Authority { host, port } = &request.target;
    let written = if *port == 80 { host.clone() } else { format!("{host}:{port}") };
    assert_eq!(values(&lines, "host"), [written.as_str()]);
    check_hops(&lines);
    assert!(values(&lines, "expect").is_empty());
    assert!(request.framing != Framing::Close, "a request ends by itself");
    check_framing(&lines, request.framing);
    // A proxy behind us, asked for the same, reads the same and sends the same on.
    let line = format!("{method} http://{written}{path} HTTP/1.1");
    let again = [line.as_bytes(), &request.head[lines[0].len()..]].concat();
    if line.len() <= MAX_FIRST_LINE && lines.len() <= MAX_FIELDS {
        let expected = Request { expects_continue: false, ..request.clone() };
        assert_eq!(Asked::read(&again), Ok(Asked::Forward(expected)));
    }
}

fn answered(answer: &Answer, to_head: bool, head: &[u8]) {
    assert!((100..600).contains(&answer.status) && answer.status != 101);
    assert!(answer.head.len() <= head.len() + MAX_GROWTH);
    let lines = lines(&answer.head);
    assert!(lines[0].starts_with(&format!("HTTP/1.1 {}", answer.status)) || lines[0] == "x-other: x", "{lines:?}");
    check_hops(&lines);
    let bodiless = to_head || answer.status < 200 || matches!(answer.status, 204 | 304);
    assert_eq!(answer.framing == Framing::None, bodiless);
    if !bodiless {
        check_framing(&lines, answer.framing);
    }
    if lines.len() <= MAX_FIELDS {
        assert_eq!(Answer::read(&answer.head, to_head).as_ref(), Ok(answer));
    }
}

/// A body in chunks by its grammar (RFC 9112, 7.1), all at once. `None`: it breaks it. Else how many bytes belong to it so far,
/// and whether it is over.
fn decoded(bytes: &[u8]) -> Option<(usize, bool)> {
    let open = Some((bytes.len(), false));
    let line_end = |at: usize| match bytes.get(at..) {
        Some([b'\r', b'\n', ..]) => Some(true),
        Some([] | [b'\r']) => Some(false),
        _ => None,
    };
    let mut at = 0;
    loop {
        let digits = bytes[at..].iter().take_while(|byte| byte.is_ascii_hexdigit()).count();
        match digits {
            0 if at == bytes.len() => return open,
            1..=12 => {}
            _ => return None,
        }
        let text = std::str::from_utf8(&bytes[at..at + digits]).expect("digits");
        let size = u64::from_str_radix(text, 16).expect("twelve digits fit");
        at += digits;
        if !line_end(at)? {
            return open;
        }
        at += 2;
        if size == 0 {
            return if line_end(at)? { Some((at + 2, true)) } else { open };
        }
        if size > (bytes.len() - at) as u64 {
            return open;
        }
        at += size as usize;
        if !line_end(at)? {
            return open;
        }
        at += 2;
    }
}

/// However a body comes, it ends where it ends, and never behind what has come.
fn chunks(bytes: &[u8]) {
    let expected = decoded(bytes);
    let sizes = [bytes.len().max(1), 1, usize::from(bytes.first().copied().unwrap_or(1)).max(1)];
    for size in sizes {
        let mut chunks = Chunks::default();
        let mut taken = 0;
        let mut found = Some(());
        for piece in bytes.chunks(size) {
            let over = chunks.is_over();
            match chunks.follow(piece, Reason::BadBody) {
                Ok(count) => {
                    assert!(count <= piece.len() && (count == piece.len() || chunks.is_over()), "{count} of {piece:?}");
                    assert!(!over || count == 0, "something belongs to a body that is over");
                    taken += count;
                }
                Err(reason) => {
                    assert_eq!(reason, Reason::BadBody);
                    found = None;
                    break;
                }
            }
        }
        assert_eq!(found.map(|()| (taken, chunks.is_over())), expected, "in pieces of {size}");
    }
}

/// A name is one that a connection can be for, and no byte that comes later changes what was read.
fn hello(bytes: &[u8]) {
    let whole = server_name(bytes);
    if let Ok(Some(name)) = &whole {
        assert!(!name.is_empty() && name.is_ascii() && !name.bytes().any(|byte| byte.is_ascii_uppercase()));
        assert!(name.len() < MAX_HELLO);
    }
    if bytes.len() > MAX_HELLO {
        assert_ne!(whole, Ok(None), "a whole record is enough");
    }
    let cuts = bytes.len().min(MAX_CUT);
    for cut in 0..cuts {
        let part = server_name(&bytes[..cut]);
        assert!(part == Ok(None) || part == whole, "{part:?} of {cut} bytes, {whole:?} of all");
    }
}
