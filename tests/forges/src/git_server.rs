//! A real git server for tests: `git http-backend` behind a small HTTP server on loopback, with a token and faults.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use base64::Engine as _;
use tokio::io::{AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::{TcpListener, TcpStream};

use crate::wire::{Request, answer, read};

/// Which requests a fault applies to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum At {
    /// Every request.
    All,
    /// The listing of refs.
    Refs,
    /// The exchange of packs.
    Pack,
}

/// What goes wrong.
#[derive(Debug, Clone)]
pub enum Fault {
    /// Answers with this status, content type, body and one more header.
    Status(u16, &'static str, String, Option<(&'static str, String)>),
    /// Sends only so many bytes of the real answer's body, then closes.
    Cut(usize),
    /// Does the work and closes without an answer.
    LoseReply,
    /// Takes the request and never answers.
    Hang,
    /// Redirects to this base URL, keeping path and query.
    Redirect(String),
    /// Breaks the connection as a router does that has forgotten it: with a reset.
    Reset,
    /// Answers so slowly that no single wait is long, and the whole never ends.
    Drip(Duration),
    /// Takes no longer the token with which the server was started.
    Revoke,
}

#[derive(Default)]
struct Shared {
    fault: Option<(At, Fault)>,
    requests: Vec<String>,
    authorizations: Vec<String>,
    further_tokens: Vec<String>,
}

/// A running server. Repositories are the bare directories below its root: `{root}/{owner}/{name}.git`.
pub struct GitServer {
    address: SocketAddr,
    shared: Arc<Mutex<Shared>>,
    task: tokio::task::JoinHandle<()>,
}

impl Drop for GitServer {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl GitServer {
    /// Serves the repositories below `root` to whoever gives `token` as password (any user name).
    pub async fn start(root: &Path, token: &str) -> Self {
        Self::open(root, token, false).await
    }

    /// The same to whoever sends `Authorization: Bearer` and the token, and to nobody else: Bitbucket Data Center's way.
    pub async fn start_bearer(root: &Path, token: &str) -> Self {
        Self::open(root, token, true).await
    }

    async fn open(root: &Path, token: &str, bearer: bool) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a loopback port");
        let address = listener.local_addr().expect("a bound listener has an address");
        let shared = Arc::new(Mutex::new(Shared::default()));
        let (state, root, token) = (Arc::clone(&shared), root.to_path_buf(), token.to_owned());
        let task = tokio::spawn(async move {
            let mut connections = tokio::task::JoinSet::new();
            while let Ok((stream, _)) = listener.accept().await {
                let (state, root, token) = (Arc::clone(&state), root.clone(), token.clone());
                connections.spawn(async move {
                    let _ = serve(stream, &root, (&token, bearer), &state).await;
                });
                while connections.try_join_next().is_some() {}
            }
        });
        Self { address, shared, task }
    }

    /// The clone URL of `owner/name`.
    pub fn url(&self, name: &str) -> String {
        format!("{}/{name}.git", self.base())
    }

    /// `http://127.0.0.1:PORT`.
    pub fn base(&self) -> String {
        format!("http://{}", self.address)
    }

    /// From now on this goes wrong; `None` mends it.
    pub fn fault(&self, fault: Option<(At, Fault)>) {
        self.shared.lock().expect("unpoisoned").fault = fault;
    }

    /// From now on this token is taken too.
    pub fn accept(&self, token: &str) {
        self.shared.lock().expect("unpoisoned").further_tokens.push(token.to_owned());
    }

    /// The request lines so far.
    pub fn requests(&self) -> Vec<String> {
        self.shared.lock().expect("unpoisoned").requests.clone()
    }

    /// The `Authorization` headers so far.
    pub fn authorizations(&self) -> Vec<String> {
        self.shared.lock().expect("unpoisoned").authorizations.clone()
    }
}

async fn serve(
    stream: TcpStream,
    root: &Path,
    (token, bearer): (&str, bool),
    state: &Mutex<Shared>,
) -> std::io::Result<()> {
    let mut stream = BufReader::new(stream);
    let Some(request) = read(&mut stream).await? else { return Ok(()) };
    let at = if request.path.ends_with("/info/refs") { At::Refs } else { At::Pack };
    let fault = {
        let mut state = state.lock().expect("unpoisoned");
        state.requests.push(format!("{} {}?{}", request.method, request.path, request.query));
        state.authorizations.extend(request.header("authorization").map(str::to_owned));
        state.fault.clone().filter(|(stage, _)| *stage == At::All || *stage == at).map(|(_, fault)| fault)
    };
    let mut cut = None;
    let mut lose = false;
    let mut revoked = false;
    match fault {
        Some(Fault::Status(code, kind, body, more)) => {
            let more = more.map(|(name, value)| format!("{name}: {value}\r\n")).unwrap_or_default();
            let headers = format!("Content-Type: {kind}\r\n{more}");
            return answer(&mut stream, &format!("{code} Fault"), &headers, body.as_bytes(), None).await;
        }
        Some(Fault::Redirect(base)) => {
            let headers = format!("Location: {base}{}?{}\r\n", request.path, request.query);
            return answer(&mut stream, "302 Found", &headers, b"", None).await;
        }
        Some(Fault::Hang) => {
            // Until the client closes.
            let _ = stream.read(&mut [0; 1]).await;
            return Ok(());
        }
        Some(Fault::Cut(bytes)) => cut = Some(bytes),
        Some(Fault::LoseReply) => lose = true,
        Some(Fault::Revoke) => revoked = true,
        Some(Fault::Reset) => {
            // Closing with unsent time to linger and unread bytes makes the kernel send a reset.
            stream.get_ref().set_zero_linger()?;
            return Ok(());
        }
        Some(Fault::Drip(pause)) => {
            let kind = if request.query.contains("receive") { "receive" } else { "upload" };
            let head = format!(
                "HTTP/1.1 200 OK\r\nContent-Type: application/x-git-{kind}-pack-advertisement\r\nContent-Length: 100000\r\n\r\n"
            );
            stream.get_mut().write_all(head.as_bytes()).await?;
            // A packet that is announced as long, one byte at a time.
            for byte in b"fff0".iter().chain(std::iter::repeat(&b'x')).take(100_000) {
                stream.get_mut().write_all(&[*byte]).await?;
                tokio::time::sleep(pause).await;
            }
            return Ok(());
        }
        None => {}
    }
    let header = request.header("authorization").unwrap_or_default();
    let basic = || {
        let pair = base64::engine::general_purpose::STANDARD.decode(header.strip_prefix("Basic ")?).ok()?;
        String::from_utf8(pair).ok()?.split_once(':').map(|(_, password)| password.to_owned())
    };
    let shown = if bearer { header.strip_prefix("Bearer ").map(str::to_owned) } else { basic() };
    let taken = shown.is_some_and(|shown| {
        let further = || state.lock().expect("unpoisoned").further_tokens.contains(&shown);
        (shown == token && !revoked) || further()
    });
    if !taken {
        let headers = "WWW-Authenticate: Basic realm=\"git\"\r\nContent-Type: text/plain\r\n";
        return answer(&mut stream, "401 Unauthorized", headers, b"Bad credentials", None).await;
    }
    let (status, headers, body) = backend(root, &request).await?;
    if lose {
        return Ok(());
    }
    answer(&mut stream, &status, &headers, &body, cut).await
}

/// One run of `git http-backend` by the rules of CGI (RFC 3875).
async fn backend(root: &Path, request: &Request) -> std::io::Result<(String, String, Vec<u8>)> {
    let mut command = tokio::process::Command::new("git");
    command
        .args(["-c", "safe.directory=*", "http-backend"])
        .env_clear()
        .env("PATH", std::env::var_os("PATH").unwrap_or_default())
        .env("HOME", PathBuf::from("/nonexistent"))
        .env("GIT_CONFIG_NOSYSTEM", "1")
        .env("GIT_PROJECT_ROOT", root)
        .env("GIT_HTTP_EXPORT_ALL", "1")
        .env("REMOTE_USER", "tester")
        .env("REMOTE_ADDR", "127.0.0.1")
        .env("REQUEST_METHOD", &request.method)
        .env("PATH_INFO", &request.path)
        .env("QUERY_STRING", &request.query)
        .env("CONTENT_LENGTH", request.body.len().to_string())
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .kill_on_drop(true);
    for (name, header) in [
        ("CONTENT_TYPE", "content-type"),
        ("HTTP_CONTENT_ENCODING", "content-encoding"),
        ("GIT_PROTOCOL", "git-protocol"),
    ] {
        if let Some(value) = request.header(header) {
            command.env(name, value);
        }
    }
    let mut child = command.spawn()?;
    let mut stdin = child.stdin.take().expect("piped");
    let feed = async {
        let _ = stdin.write_all(&request.body).await;
        drop(stdin);
    };
    let (_, output) = tokio::join!(feed, child.wait_with_output());
    let output = output?.stdout;
    let end = output.windows(4).position(|bytes| bytes == b"\r\n\r\n").unwrap_or(output.len().saturating_sub(4));
    let mut status = "200 OK".to_owned();
    let mut headers = String::new();
    for line in String::from_utf8_lossy(&output[..end]).lines() {
        match line.split_once(':') {
            Some((name, value)) if name.eq_ignore_ascii_case("status") => status = value.trim().to_owned(),
            _ if !line.is_empty() => headers.push_str(&format!("{line}\r\n")),
            _ => {}
        }
    }
    Ok((status, headers, output[(end + 4).min(output.len())..].to_vec()))
}
