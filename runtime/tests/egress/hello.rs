//! Client Hellos, whole and broken.

/// A Client Hello with these extensions.
pub fn with_extensions(extensions: &[(u16, Vec<u8>)]) -> Vec<u8> {
    let mut body = vec![3, 3];
    body.extend([7; 32]);
    // No session; one cipher suite; no compression.
    body.extend([0, 0, 2, 0x13, 0x01, 1, 0]);
    let mut listed = Vec::new();
    for (kind, content) in extensions {
        listed.extend(kind.to_be_bytes());
        listed.extend(u16::try_from(content.len()).unwrap().to_be_bytes());
        listed.extend(content);
    }
    body.extend(u16::try_from(listed.len()).unwrap().to_be_bytes());
    body.extend(listed);
    record(&message(&body))
}

/// A handshake message.
pub fn message(body: &[u8]) -> Vec<u8> {
    let mut message = vec![1];
    message.extend(&u32::try_from(body.len()).unwrap().to_be_bytes()[1..]);
    message.extend(body);
    message
}

/// A record of the handshake.
pub fn record(message: &[u8]) -> Vec<u8> {
    let mut record = vec![22, 3, 1];
    record.extend(u16::try_from(message.len()).unwrap().to_be_bytes());
    record.extend(message);
    record
}

/// The content of `server_name` with these names.
pub fn names(names: &[&[u8]]) -> Vec<u8> {
    let mut list = Vec::new();
    for name in names {
        list.push(0);
        list.extend(u16::try_from(name.len()).unwrap().to_be_bytes());
        list.extend(*name);
    }
    let mut content = u16::try_from(list.len()).unwrap().to_be_bytes().to_vec();
    content.extend(list);
    content
}

/// A Client Hello as any client sends it.
pub fn to(name: &str) -> Vec<u8> {
    with_extensions(&[(43, vec![2, 3, 4]), (0, names(&[name.as_bytes()])), (16, vec![0, 3, 2, b'h', b'2'])])
}
