//! The server around a stand-in: tokens, faults, and a look at every request before it is answered.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, BufReader};
use tokio::net::{TcpListener, TcpStream};

use crate::bare::Bare;
use crate::spec::{Call, Spec};
use crate::state::{Login, Person, Repo, State};
use crate::wire::{Request, answer, read};
use crate::{bitbucket_cloud, bitbucket_dc, github, gitlab};

/// Whose interface is spoken.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// GitHub.
    Github,
    /// GitLab.
    Gitlab,
    /// Bitbucket Cloud.
    BitbucketCloud,
    /// Bitbucket Data Center.
    BitbucketDc,
}

impl Kind {
    /// All of them.
    pub const ALL: [Self; 4] = [Self::Github, Self::Gitlab, Self::BitbucketCloud, Self::BitbucketDc];
}

/// How one forge speaks.
pub(crate) struct Dialect {
    /// What stands before the paths of the description.
    pub(crate) root: &'static str,
    /// The OpenAPI description, cut to what is used.
    pub(crate) description: &'static str,
    /// Answers a request that the description allows.
    pub(crate) answer: fn(&mut State, &Login, &Call) -> Reply,
    /// An error in the forge's own shape.
    pub(crate) error: fn(u16, &str) -> Reply,
    /// The answer when a limit is met: for so many seconds.
    pub(crate) limited: fn(u64) -> Reply,
}

fn dialect(kind: Kind) -> Dialect {
    match kind {
        Kind::Github => github::dialect(),
        Kind::Gitlab => gitlab::dialect(),
        Kind::BitbucketCloud => bitbucket_cloud::dialect(),
        Kind::BitbucketDc => bitbucket_dc::dialect(),
    }
}

/// An answer.
#[derive(Debug, Clone)]
pub(crate) struct Reply {
    pub(crate) status: u16,
    pub(crate) headers: Vec<(&'static str, String)>,
    pub(crate) body: Value,
}

impl Reply {
    pub(crate) fn new(status: u16, body: Value) -> Self {
        Self { status, headers: Vec::new(), body }
    }

    pub(crate) fn header(mut self, name: &'static str, value: impl Into<String>) -> Self {
        self.headers.push((name, value.into()));
        self
    }
}

/// Which requests a fault hits.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum On {
    /// Every request.
    Any,
    /// Those that read.
    Reading,
    /// Those that change something.
    Writing,
    /// Those of one operation: a method, and a part of the description's path.
    Operation(&'static str, &'static str),
}

/// What goes wrong with the interface.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ApiFault {
    /// This status and message, in the forge's own shape.
    Status(u16, &'static str),
    /// Bitbucket Data Center's answer to every token of an account that has to solve a captcha first.
    Captcha,
    /// The forge's limit, for so many seconds.
    Limited(u64),
    /// A page for people, with this status.
    Html(u16),
    /// To this base address, keeping the path.
    Redirect(String),
    /// Nothing is answered.
    Hang,
    /// It is done, and half of the answer is sent.
    Cut,
    /// It is done, and nothing is answered.
    LoseReply,
    /// The answer comes so much later.
    Slow(Duration),
}

struct Planned {
    on: On,
    fault: ApiFault,
    /// Requests that are let through before each one that is hit.
    spare: u32,
    let_through: u32,
    times: u32,
}

#[derive(Default)]
struct Shared {
    state: State,
    faults: Vec<Planned>,
    requests: Vec<String>,
    authorizations: Vec<String>,
    violations: Vec<String>,
}

/// A stand-in of a forge's REST interface over the bare repositories below a folder.
pub struct FakeForge {
    kind: Kind,
    root: PathBuf,
    address: SocketAddr,
    shared: Arc<Mutex<Shared>>,
    task: tokio::task::JoinHandle<()>,
}

impl Drop for FakeForge {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl FakeForge {
    /// Starts it on loopback, without repositories or tokens.
    pub async fn start(kind: Kind, root: &Path) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a loopback port");
        let address = listener.local_addr().expect("a bound listener has an address");
        let dialect = Arc::new(dialect(kind));
        let spec = Arc::new(Spec::parse(dialect.description));
        let shared = Arc::new(Mutex::new(Shared::default()));
        shared.lock().expect("unpoisoned").state.base = format!("http://{address}{}", dialect.root);
        let state = Arc::clone(&shared);
        let task = tokio::spawn(async move {
            let mut connections = tokio::task::JoinSet::new();
            while let Ok((stream, _)) = listener.accept().await {
                let (state, dialect, spec) = (Arc::clone(&state), Arc::clone(&dialect), Arc::clone(&spec));
                connections.spawn(async move {
                    let _ = serve(stream, &dialect, &spec, &state).await;
                });
                while connections.try_join_next().is_some() {}
            }
        });
        Self { kind, root: root.to_owned(), address, shared, task }
    }

    /// Whose interface it speaks.
    pub fn kind(&self) -> Kind {
        self.kind
    }

    /// The address to configure.
    pub fn api_url(&self) -> String {
        self.lock().state.base.clone()
    }

    /// `http://127.0.0.1:PORT`.
    pub fn origin(&self) -> String {
        format!("http://{}", self.address)
    }

    fn lock(&self) -> MutexGuard<'_, Shared> {
        self.shared.lock().expect("unpoisoned")
    }

    /// Adds a repository; its files are made if there are none.
    pub fn add_repo(&self, path: &str) -> Bare {
        let git = Bare::make(&self.root, path);
        let mut shared = self.lock();
        let id = shared.state.next_id() + 1000;
        let repo = Repo {
            path: path.to_owned(),
            id,
            uuid: format!("{{00000000-0000-4000-8000-{id:012}}}"),
            git: git.clone(),
            default_branch: "main".to_owned(),
            archived: false,
            drafts: true,
            protected: Vec::new(),
            pulls: Vec::new(),
            statuses: Vec::new(),
            status_changes: Vec::new(),
        };
        shared.state.repos.insert(path.to_owned(), repo);
        git
    }

    /// Adds somebody who can be asked for a review.
    pub fn add_person(&self, login: &str) {
        let mut shared = self.lock();
        let id = shared.state.next_id();
        let uuid = format!("{{11111111-0000-4000-8000-{id:012}}}");
        shared.state.people.push(Person { login: login.to_owned(), uuid, id });
    }

    /// Adds a token.
    pub fn add_token(&self, token: &str, login: Login) {
        self.lock().state.tokens.insert(token.to_owned(), login);
    }

    /// Looks at what there is, or changes it.
    pub fn with<T>(&self, look: impl FnOnce(&mut State) -> T) -> T {
        look(&mut self.lock().state)
    }

    /// The next `times` requests of that kind go wrong.
    pub fn fault(&self, on: On, fault: ApiFault, times: u32) {
        self.lock().faults.push(Planned { on, fault, spare: 0, let_through: 0, times });
    }

    /// From now on one request in `every` of that kind goes wrong.
    pub fn fault_in(&self, on: On, fault: ApiFault, every: u32) {
        let spare = every.saturating_sub(1);
        self.lock().faults.push(Planned { on, fault, spare, let_through: 0, times: u32::MAX });
    }

    /// No request goes wrong any more.
    pub fn mend(&self) {
        self.lock().faults.clear();
    }

    /// What was asked for so far: method and path with parameters.
    pub fn requests(&self) -> Vec<String> {
        self.lock().requests.clone()
    }

    /// The `Authorization` headers so far.
    pub fn authorizations(&self) -> Vec<String> {
        self.lock().authorizations.clone()
    }

    /// What the forge's description does not allow. Empty, at the end of a good test.
    pub fn violations(&self) -> Vec<String> {
        self.lock().violations.clone()
    }
}

impl Shared {
    fn fault(&mut self, call: &Request, template: Option<&str>) -> Option<ApiFault> {
        let reads = call.method == "GET";
        let hits = |on: On| match on {
            On::Any => true,
            On::Reading => reads,
            On::Writing => !reads,
            On::Operation(method, part) => {
                call.method == method && template.is_some_and(|template| template.contains(part))
            }
        };
        let planned = self.faults.iter_mut().find(|planned| planned.times > 0 && hits(planned.on))?;
        if planned.let_through < planned.spare {
            planned.let_through += 1;
            return None;
        }
        planned.let_through = 0;
        planned.times -= 1;
        Some(planned.fault.clone())
    }
}

/// The token, in any of the ways in which the forges take it.
fn token(request: &Request) -> Option<String> {
    let other = request.header("private-token").or_else(|| request.header("job-token"));
    let header = request.header("authorization").unwrap_or_default();
    let bearer = header.strip_prefix("Bearer ").or_else(|| header.strip_prefix("token ")).or(other);
    let basic = || {
        let pair = STANDARD.decode(header.strip_prefix("Basic ")?).ok()?;
        String::from_utf8(pair).ok()
    };
    bearer.map(str::to_owned).or_else(basic)
}

/// The answer, and what is wrong with how it is sent.
fn reply(
    request: &Request,
    dialect: &Dialect,
    spec: &Spec,
    shared: &Mutex<Shared>,
) -> (Option<Reply>, Option<ApiFault>) {
    let mut shared = shared.lock().expect("unpoisoned");
    shared.requests.push(format!("{} {}?{}", request.method, request.path, request.query));
    shared.authorizations.extend(request.header("authorization").map(str::to_owned));
    let checked = request.path.strip_prefix(dialect.root).map_or_else(
        || Err(format!("{} is not below {}", request.path, dialect.root)),
        |path| spec.check(request, path),
    );
    let fault = shared.fault(request, checked.as_ref().ok().map(|call| call.template.as_str()));
    match fault {
        Some(ApiFault::Status(status, message)) => return (Some((dialect.error)(status, message)), None),
        Some(ApiFault::Captcha) => {
            let reason = "CAPTCHA_CHALLENGE; login-url=https://bitbucket.example/login";
            let reply = (dialect.error)(
                401,
                "CAPTCHA required. Your Bitbucket account has been marked as requiring a CAPTCHA.",
            );
            return (Some(reply.header("X-Authentication-Denied-Reason", reason)), None);
        }
        Some(ApiFault::Limited(seconds)) => return (Some((dialect.limited)(seconds)), None),
        Some(ApiFault::Html(_) | ApiFault::Redirect(_) | ApiFault::Hang) => return (None, fault),
        Some(ApiFault::Cut | ApiFault::LoseReply | ApiFault::Slow(_)) | None => {}
    }
    let call = match checked {
        Ok(call) => call,
        Err(violation) => {
            let reply = (dialect.error)(400, &violation);
            shared.violations.push(violation);
            return (Some(reply), None);
        }
    };
    let login = token(request).and_then(|token| shared.state.tokens.get(&token).cloned());
    let reply = match login {
        Some(login) => (dialect.answer)(&mut shared.state, &login, &call),
        None => (dialect.error)(401, "Bad credentials"),
    };
    (Some(reply), fault)
}

async fn serve(stream: TcpStream, dialect: &Dialect, spec: &Spec, shared: &Mutex<Shared>) -> std::io::Result<()> {
    let mut stream = BufReader::new(stream);
    let Some(request) = read(&mut stream).await? else { return Ok(()) };
    let (reply, fault) = reply(&request, dialect, spec, shared);
    let mut cut = None;
    match fault {
        Some(ApiFault::Html(status)) => {
            let page = b"<!DOCTYPE html><html><body><h1>Sign in</h1></body></html>";
            return answer(&mut stream, &format!("{status} Page"), "Content-Type: text/html\r\n", page, None).await;
        }
        Some(ApiFault::Redirect(base)) => {
            let headers = format!("Location: {base}{}?{}\r\n", request.path, request.query);
            return answer(&mut stream, "307 Elsewhere", &headers, b"", None).await;
        }
        Some(ApiFault::Hang) => {
            // Until the client closes.
            let _ = stream.read(&mut [0; 1]).await;
            return Ok(());
        }
        Some(ApiFault::LoseReply) => return Ok(()),
        Some(ApiFault::Cut) => cut = Some(1),
        Some(ApiFault::Slow(time)) => tokio::time::sleep(time).await,
        Some(ApiFault::Status(..) | ApiFault::Captcha | ApiFault::Limited(_)) | None => {}
    }
    let reply = reply.unwrap_or_else(|| Reply::new(500, json!({})));
    let more: String = reply.headers.iter().map(|(name, value)| format!("{name}: {value}\r\n")).collect();
    let body = if reply.body.is_null() { Vec::new() } else { reply.body.to_string().into_bytes() };
    let headers = format!("Content-Type: application/json; charset=utf-8\r\n{more}");
    answer(&mut stream, &format!("{} Answer", reply.status), &headers, &body, cut).await
}
