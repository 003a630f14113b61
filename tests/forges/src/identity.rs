//! An identity provider for tests: OpenID Connect's authorization code flow with keys of its own, and every way to get it
//! wrong. It checks what it is sent as a real one does: the client, the redirect, the code that counts once, PKCE.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use base64::Engine as _;
use base64::engine::general_purpose::{STANDARD, URL_SAFE_NO_PAD};
use openssl::bn::{BigNum, BigNumContext};
use openssl::ec::{EcGroup, EcKey};
use openssl::ecdsa::EcdsaSig;
use openssl::hash::MessageDigest;
use openssl::nid::Nid;
use openssl::pkey::{PKey, Private};
use openssl::rsa::Rsa;
use openssl::sha::sha256;
use openssl::sign::Signer;
use serde_json::{Value, json};
use tokio::io::BufReader;
use tokio::net::{TcpListener, TcpStream};

use crate::wire::{Request, answer, read};

/// What this server is called at the provider.
pub const CLIENT_ID: &str = "orchestra";
/// What it proves that with. With characters that have to be encoded.
pub const CLIENT_SECRET: &str = "s3cret of the tests: +/=%";

/// How tokens are signed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Signature {
    /// RSA with SHA-256.
    Rs256,
    /// ECDSA on P-256.
    Es256,
    /// Ed25519.
    EdDsa,
}

impl Signature {
    /// All of them.
    pub const ALL: [Self; 3] = [Self::Rs256, Self::Es256, Self::EdDsa];

    fn name(self) -> &'static str {
        match self {
            Self::Rs256 => "RS256",
            Self::Es256 => "ES256",
            Self::EdDsa => "EdDSA",
        }
    }
}

/// What is wrong with what the provider says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum IdentityFault {
    /// The token is another provider's.
    Issuer,
    /// It is for another application.
    Audience,
    /// It is for two, and does not say to whom it was given.
    TwoAudiences,
    /// It was given to another application.
    Party,
    /// It belongs to another sign-in.
    Nonce,
    /// It belongs to none.
    NoNonce,
    /// It is over.
    Expired,
    /// It never ends.
    NoExpiry,
    /// It has not begun.
    NotYet,
    /// It was made tomorrow.
    Tomorrow,
    /// It was made yesterday.
    Yesterday,
    /// It is about nobody.
    NoSubject,
    /// One bit of it is another.
    Flipped,
    /// It is signed by a key that nobody publishes, under a name that somebody does.
    OtherKey,
    /// Its key has a name that nobody publishes.
    UnknownKey,
    /// It says `none`, and is not signed.
    NotSigned,
    /// It is signed with the public key as if that were a secret.
    PublicAsSecret,
    /// It has two parts.
    TwoParts,
    /// There is none.
    NoToken,
    /// The provider breaks.
    ServerError,
    /// The token's answer is a page.
    Page,
    /// It comes from elsewhere.
    TokenRedirects,
    /// It does not come.
    Slow,
    /// The document is about another issuer.
    OtherDocument,
    /// The document is elsewhere.
    DocumentRedirects,
    /// The keys fill a disk.
    HugeKeys,
    /// The keys never end, a little at a time.
    EndlessKeys,
    /// The userinfo is about somebody else.
    OtherUserinfo,
    /// The answer to the browser comes from another provider.
    OtherAnswer,
}

/// Where the groups are said.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Groups {
    /// In the token.
    InToken,
    /// Where one has to ask for them.
    InUserinfo,
    /// Nowhere.
    Nowhere,
}

struct Key {
    id: String,
    how: Signature,
    key: PKey<Private>,
}

struct Code {
    redirect: String,
    challenge: String,
    nonce: String,
}

/// What the provider knows, and does.
pub struct Directory {
    /// Who signs in next.
    pub subject: String,
    /// What they are called.
    pub name: String,
    /// Their groups.
    pub groups: Vec<String>,
    /// Where those are said.
    pub says: Groups,
    /// How tokens are signed.
    pub signature: Signature,
    /// What is wrong.
    pub fault: Option<IdentityFault>,
    /// Whether the secret is taken in the body alone.
    pub secret_in_body: bool,
    /// The requests by path.
    pub asked: HashMap<String, usize>,
    keys: Vec<Key>,
    /// Those that nobody publishes.
    others: Vec<Key>,
    codes: HashMap<String, Code>,
    access: HashMap<String, String>,
    made: usize,
}

/// A running provider. Dropped, it is gone.
pub struct IdentityServer {
    issuer: String,
    directory: Arc<Mutex<Directory>>,
    serving: tokio::task::JoinHandle<()>,
}

impl Drop for IdentityServer {
    fn drop(&mut self) {
        self.serving.abort();
    }
}

fn b64(bytes: &[u8]) -> String {
    URL_SAFE_NO_PAD.encode(bytes)
}

fn curve() -> EcGroup {
    EcGroup::from_curve_name(Nid::X9_62_PRIME256V1).expect("a curve")
}

impl Key {
    fn new(how: Signature, number: usize) -> Self {
        let key = match how {
            Signature::Rs256 => PKey::from_rsa(Rsa::generate(2_048).expect("a key")).expect("a key"),
            Signature::Es256 => PKey::from_ec_key(EcKey::generate(&curve()).expect("a key")).expect("a key"),
            Signature::EdDsa => PKey::generate_ed25519().expect("a key"),
        };
        Self { id: format!("{}-{number}", how.name()), how, key }
    }

    fn published(&self) -> Value {
        let mut jwk = json!({"kid": self.id, "alg": self.how.name(), "use": "sig"});
        match self.how {
            Signature::Rs256 => {
                let rsa = self.key.rsa().expect("an RSA key");
                jwk["kty"] = json!("RSA");
                jwk["n"] = json!(b64(&rsa.n().to_vec()));
                jwk["e"] = json!(b64(&rsa.e().to_vec()));
            }
            Signature::Es256 => {
                let (mut x, mut y) = (BigNum::new().expect("a number"), BigNum::new().expect("a number"));
                let mut context = BigNumContext::new().expect("a context");
                let ec = self.key.ec_key().expect("an EC key");
                ec.public_key().affine_coordinates(&curve(), &mut x, &mut y, &mut context).expect("coordinates");
                jwk["kty"] = json!("EC");
                jwk["crv"] = json!("P-256");
                jwk["x"] = json!(b64(&x.to_vec_padded(32).expect("32 bytes")));
                jwk["y"] = json!(b64(&y.to_vec_padded(32).expect("32 bytes")));
            }
            Signature::EdDsa => {
                jwk["kty"] = json!("OKP");
                jwk["crv"] = json!("Ed25519");
                jwk["x"] = json!(b64(&self.key.raw_public_key().expect("a public key")));
            }
        }
        jwk
    }

    fn sign(&self, message: &[u8]) -> Vec<u8> {
        match self.how {
            Signature::Rs256 => {
                let mut signer = Signer::new(MessageDigest::sha256(), &self.key).expect("a signer");
                signer.sign_oneshot_to_vec(message).expect("a signature")
            }
            Signature::Es256 => {
                let mut signer = Signer::new(MessageDigest::sha256(), &self.key).expect("a signer");
                let der = signer.sign_oneshot_to_vec(message).expect("a signature");
                let pair = EcdsaSig::from_der(&der).expect("a signature");
                [pair.r().to_vec_padded(32).expect("32 bytes"), pair.s().to_vec_padded(32).expect("32 bytes")].concat()
            }
            Signature::EdDsa => {
                let mut signer = Signer::new_without_digest(&self.key).expect("a signer");
                signer.sign_oneshot_to_vec(message).expect("a signature")
            }
        }
    }
}

impl Directory {
    fn new() -> Self {
        Self {
            subject: "5f0c-ada".to_owned(),
            name: "Ada Lovelace".to_owned(),
            groups: Vec::new(),
            says: Groups::InToken,
            signature: Signature::Rs256,
            fault: None,
            secret_in_body: false,
            asked: HashMap::new(),
            keys: Signature::ALL.map(|how| Key::new(how, 1)).into(),
            others: Signature::ALL.map(|how| Key::new(how, 0)).into(),
            codes: HashMap::new(),
            access: HashMap::new(),
            made: 1,
        }
    }

    /// Signs with new keys from now on, and publishes the old ones no more.
    pub fn rotate(&mut self) {
        self.made += 1;
        self.keys = Signature::ALL.map(|how| Key::new(how, self.made)).into();
    }

    /// How often a path was asked.
    pub fn count(&self, path: &str) -> usize {
        self.asked.get(path).copied().unwrap_or_default()
    }

    fn token(&self, issuer: &str, nonce: &str) -> String {
        use IdentityFault as F;
        let now = SystemTime::now().duration_since(UNIX_EPOCH).expect("after 1970").as_secs();
        let mut claims = json!({
            "iss": issuer, "aud": CLIENT_ID, "sub": self.subject, "nonce": nonce,
            "iat": now, "nbf": now, "exp": now + 300, "name": self.name,
        });
        if self.says == Groups::InToken {
            claims["groups"] = json!(self.groups);
        }
        let mut without = None;
        match self.fault {
            Some(F::Issuer) => claims["iss"] = json!("https://login.example.com"),
            Some(F::Audience) => claims["aud"] = json!("another"),
            Some(F::TwoAudiences) => claims["aud"] = json!([CLIENT_ID, "another"]),
            Some(F::Party) => claims["azp"] = json!("another"),
            Some(F::Nonce) => claims["nonce"] = json!("another"),
            Some(F::NoNonce) => without = Some("nonce"),
            Some(F::Expired) => claims["exp"] = json!(now - 120),
            Some(F::NoExpiry) => without = Some("exp"),
            Some(F::NotYet) => claims["nbf"] = json!(now + 120),
            Some(F::Tomorrow) => claims["iat"] = json!(now + 86_400),
            Some(F::Yesterday) => claims["iat"] = json!(now - 86_400),
            Some(F::NoSubject) => claims["sub"] = json!(""),
            _ => {}
        }
        if let (Some(name), Some(claims)) = (without, claims.as_object_mut()) {
            claims.remove(name);
        }
        let of = |keys: &'_ [Key]| keys.iter().position(|key| key.how == self.signature).expect("a key of each kind");
        let (key, other) = (&self.keys[of(&self.keys)], &self.others[of(&self.others)]);
        let mut header = json!({"typ": "JWT", "alg": key.how.name(), "kid": key.id});
        match self.fault {
            Some(F::UnknownKey) => header["kid"] = json!("nobody"),
            Some(F::NotSigned) => header["alg"] = json!("none"),
            Some(F::PublicAsSecret) => header["alg"] = json!("HS256"),
            _ => {}
        }
        let message = format!("{}.{}", b64(header.to_string().as_bytes()), b64(claims.to_string().as_bytes()));
        let mut signature = match self.fault {
            Some(F::NotSigned) => Vec::new(),
            Some(F::OtherKey) => other.sign(message.as_bytes()),
            Some(F::PublicAsSecret) => {
                let secret = PKey::hmac(&key.key.public_key_to_pem().expect("a key")).expect("a key");
                let mut signer = Signer::new(MessageDigest::sha256(), &secret).expect("a signer");
                signer.sign_oneshot_to_vec(message.as_bytes()).expect("a signature")
            }
            _ => key.sign(message.as_bytes()),
        };
        match self.fault {
            Some(F::Flipped) => signature[7] ^= 1,
            Some(F::TwoParts) => return message,
            _ => {}
        }
        format!("{message}.{}", b64(&signature))
    }
}

fn decoded(text: &str) -> String {
    let (mut bytes, mut rest) = (Vec::new(), text.bytes());
    while let Some(byte) = rest.next() {
        match byte {
            b'%' => {
                let digits = [rest.next(), rest.next()].map(|digit| char::from(digit.expect("two digits")));
                let digits: String = digits.into_iter().collect();
                bytes.push(u8::from_str_radix(&digits, 16).expect("hexadecimal"));
            }
            b'+' => bytes.push(b' '),
            byte => bytes.push(byte),
        }
    }
    String::from_utf8(bytes).expect("UTF-8")
}

fn fields(text: &str) -> HashMap<String, String> {
    let pairs = text.split('&').filter_map(|pair| pair.split_once('='));
    pairs.map(|(name, value)| (decoded(name), decoded(value))).collect()
}

fn encoded(text: &str) -> String {
    text.bytes().map(|byte| format!("%{byte:02X}")).collect()
}

struct Reply {
    status: &'static str,
    headers: String,
    body: Vec<u8>,
}

fn json_reply(status: &'static str, body: &Value) -> Reply {
    Reply { status, headers: "Content-Type: application/json\r\n".to_owned(), body: body.to_string().into_bytes() }
}

fn refusal(error: &str) -> Reply {
    json_reply("400 Bad Request", &json!({"error": error, "error_description": format!("{error}\u{7} it is")}))
}

fn elsewhere(location: &str) -> Reply {
    Reply { status: "302 Found", headers: format!("Location: {location}\r\n"), body: Vec::new() }
}

impl IdentityServer {
    /// Starts it on the loopback.
    pub async fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let issuer = format!("http://{}/realms/tests", listener.local_addr().expect("an address"));
        let directory = Arc::new(Mutex::new(Directory::new()));
        let (shared, own) = (Arc::clone(&directory), issuer.clone());
        let serving = tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let (shared, own) = (Arc::clone(&shared), own.clone());
                tokio::spawn(async move { serve(stream, &shared, &own).await });
            }
        });
        Self { issuer, directory, serving }
    }

    /// Its issuer identifier.
    pub fn issuer(&self) -> &str {
        &self.issuer
    }

    /// What it knows.
    pub fn directory(&self) -> MutexGuard<'_, Directory> {
        self.directory.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What a person does whose browser was sent to this address: consents. Answers where the browser is sent back to.
    pub fn consent(&self, url: &str) -> String {
        let query = url.split_once('?').expect("a query").1;
        authorize(&mut self.directory(), &self.issuer, query).expect("a request that is in order")
    }
}

/// The authorization endpoint: where the browser goes next.
fn authorize(directory: &mut Directory, issuer: &str, query: &str) -> Result<String, &'static str> {
    let asked = fields(query);
    let field = |name: &'static str| asked.get(name).cloned().filter(|value| !value.is_empty()).ok_or(name);
    let exactly = |name: &'static str, wanted: &str| (field(name)? == wanted).then_some(()).ok_or(name);
    exactly("response_type", "code")?;
    exactly("client_id", CLIENT_ID)?;
    exactly("code_challenge_method", "S256")?;
    if !field("scope")?.split(' ').any(|scope| scope == "openid") {
        return Err("scope");
    }
    let (redirect, state) = (field("redirect_uri")?, field("state")?);
    directory.made += 1;
    let code = format!("code {} of the tests", directory.made);
    let kept = Code { redirect: redirect.clone(), challenge: field("code_challenge")?, nonce: field("nonce")? };
    directory.codes.insert(code.clone(), kept);
    let from = if directory.fault == Some(IdentityFault::OtherAnswer) { "https://login.example.com" } else { issuer };
    Ok(format!("{redirect}?code={}&state={}&iss={}", encoded(&code), encoded(&state), encoded(from)))
}

fn token(directory: &mut Directory, issuer: &str, request: &Request) -> Result<Value, &'static str> {
    let form = fields(&String::from_utf8_lossy(&request.body));
    let field = |name: &str| form.get(name).map(String::as_str);
    let pair = request.header("authorization").and_then(|value| value.strip_prefix("Basic ")).map(|text| {
        let text = String::from_utf8(STANDARD.decode(text).expect("Base64")).expect("UTF-8");
        let (id, secret) = text.split_once(':').expect("two halves");
        (decoded(id), decoded(secret))
    });
    let in_body = field("client_id").zip(field("client_secret")).map(|(id, secret)| (id.to_owned(), secret.to_owned()));
    let given = if directory.secret_in_body { in_body } else { pair };
    if given != Some((CLIENT_ID.to_owned(), CLIENT_SECRET.to_owned())) {
        return Err("invalid_client");
    }
    if field("grant_type") != Some("authorization_code") {
        return Err("unsupported_grant_type");
    }
    // Counts once, whatever becomes of it.
    let code = field("code").and_then(|code| directory.codes.remove(code)).ok_or("invalid_grant")?;
    let verifier = field("code_verifier").ok_or("invalid_grant")?;
    if Some(&*code.redirect) != field("redirect_uri") || b64(&sha256(verifier.as_bytes())) != code.challenge {
        return Err("invalid_grant");
    }
    directory.made += 1;
    let access = format!("access-{}", directory.made);
    directory.access.insert(access.clone(), directory.subject.clone());
    let mut body = json!({"token_type": "Bearer", "access_token": access, "expires_in": 300});
    if directory.fault != Some(IdentityFault::NoToken) {
        body["id_token"] = json!(directory.token(issuer, &code.nonce));
    }
    Ok(body)
}

fn userinfo(directory: &Directory, request: &Request) -> Option<Value> {
    let bearer = request.header("authorization")?.strip_prefix("Bearer ")?;
    let subject = directory.access.get(bearer)?;
    let about = if directory.fault == Some(IdentityFault::OtherUserinfo) { "somebody else" } else { subject };
    let mut body = json!({"sub": about, "email": "ada@example.com"});
    if directory.says == Groups::InUserinfo {
        body["groups"] = json!(directory.groups);
    }
    Some(body)
}

fn document(directory: &Directory, issuer: &str) -> Value {
    let named = match directory.fault {
        Some(IdentityFault::OtherDocument) => "https://login.example.com",
        _ => issuer,
    };
    let way = if directory.secret_in_body { "client_secret_post" } else { "client_secret_basic" };
    json!({
        "issuer": named,
        "authorization_endpoint": format!("{issuer}/authorize"),
        "token_endpoint": format!("{issuer}/token"),
        "jwks_uri": format!("{issuer}/keys"),
        "userinfo_endpoint": format!("{issuer}/userinfo"),
        "code_challenge_methods_supported": ["S256"],
        "token_endpoint_auth_methods_supported": [way],
        "authorization_response_iss_parameter_supported": true,
    })
}

fn respond(directory: &mut Directory, issuer: &str, request: &Request, path: &str) -> Reply {
    use IdentityFault as F;
    match (path, directory.fault) {
        ("/.well-known/openid-configuration", Some(F::DocumentRedirects)) => elsewhere("/elsewhere"),
        ("/.well-known/openid-configuration", _) => json_reply("200 OK", &document(directory, issuer)),
        ("/authorize", _) => match authorize(directory, issuer, &request.query) {
            Ok(location) => elsewhere(&location),
            Err(field) => refusal(field),
        },
        ("/keys", Some(F::HugeKeys)) => {
            let body = [br#"{"keys": []"#.to_vec(), vec![b' '; HUGE], b"}".to_vec()].concat();
            Reply { body, ..json_reply("200 OK", &json!({})) }
        }
        ("/keys", _) => {
            let mut keys: Vec<_> = directory.keys.iter().map(Key::published).collect();
            // Others that a client has to step over.
            keys.push(json!({"kty": "oct", "kid": "shared", "k": "c2VjcmV0"}));
            keys.push(json!({"kty": "later", "kid": "x"}));
            json_reply("200 OK", &json!({"keys": keys}))
        }
        ("/token", Some(F::TokenRedirects)) => elsewhere("/realms/tests/keys"),
        ("/token", Some(F::ServerError)) => json_reply("503 Service Unavailable", &json!({})),
        ("/token", Some(F::Page)) => Reply {
            status: "200 OK",
            headers: "Content-Type: text/html\r\n".to_owned(),
            body: b"<h1>Hello</h1>".into(),
        },
        ("/token", _) => match token(directory, issuer, request) {
            Ok(body) => json_reply("200 OK", &body),
            Err(error) => refusal(error),
        },
        ("/userinfo", _) => match userinfo(directory, request) {
            Some(body) => json_reply("200 OK", &body),
            None => json_reply("401 Unauthorized", &json!({})),
        },
        _ => json_reply("404 Not Found", &json!({})),
    }
}

/// More bytes than any client of the tests takes.
const HUGE: usize = 2 * 1024 * 1024;
/// Longer than any client of the tests waits.
const LONG: Duration = Duration::from_secs(30);

async fn serve(stream: TcpStream, directory: &Mutex<Directory>, issuer: &str) {
    let mut stream = BufReader::new(stream);
    let Ok(Some(request)) = read(&mut stream).await else { return };
    let path = request.path.strip_prefix("/realms/tests").unwrap_or("/elsewhere").to_owned();
    let (reply, fault) = {
        let mut directory = directory.lock().unwrap_or_else(PoisonError::into_inner);
        *directory.asked.entry(path.clone()).or_default() += 1;
        (respond(&mut directory, issuer, &request, &path), directory.fault)
    };
    match (&*path, fault) {
        ("/token", Some(IdentityFault::Slow)) => tokio::time::sleep(LONG).await,
        ("/keys", Some(IdentityFault::EndlessKeys)) => {
            use tokio::io::AsyncWriteExt as _;
            let stream = stream.get_mut();
            let head = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nConnection: close\r\n\r\n";
            if stream.write_all(head).await.is_err() {
                return;
            }
            // Until the other side has had enough.
            while stream.write_all(&[b' '; 4_096]).await.is_ok() {
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
            return;
        }
        _ => {}
    }
    // A client that has gone away is none of its business.
    let _ = answer(&mut stream, reply.status, &reply.headers, &reply.body, None).await;
}
