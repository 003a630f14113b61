//! Real sandboxes and real clients: nothing but the proxy is reachable, and npm, pip, apt and cargo work through it with
//! the variables that they know. No host of a registry is written here: the clients ask for theirs, are refused, and get
//! exactly those.

use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv4Addr};
use std::path::PathBuf;
use std::process::Stdio;
use std::sync::Arc;
use std::time::Duration;

use orchestra_runtime::egress::{
    Decision, Egress, Network, PORT, Pattern, Policy, Reason, Verdict, expand, read_list, serve, serve_on, variables,
};
use orchestra_runtime::sandbox::{Exec, Exit, Limits, Sandbox, Sandboxes};
use tokio::net::{TcpListener, TcpStream};
use tokio::process::Command;

use super::host::{Host, limits, say, spec};
use super::stage::{ANSWER, Names, Notes, Server, refused};

/// How long a client may take.
const CLIENT: Duration = Duration::from_secs(240);
/// Rounds in which a client may come up with further hosts: an index, a store, and what those name.
const ROUNDS: usize = 5;

async fn sandbox_on(host: &Host) -> Arc<dyn Sandbox> {
    let limits = Limits { memory_bytes: 1 << 30, disk_bytes: 1 << 30, ..limits() };
    let spec = orchestra_runtime::sandbox::SandboxSpec { env: variables(), ..spec(host.id(), limits) };
    host.sandboxes.start(&spec).await.unwrap()
}

fn patterns(hosts: &[String]) -> Vec<Pattern> {
    expand(&read_list(hosts).unwrap(), &Default::default())
}

/// Says of each place whether it is connected to, or how not.
const PROBE: &str = r#"
import socket, sys
def tried(place, port):
    try:
        socket.create_connection((place, port), 3).close()
        return "open"
    except OSError as error:
        return type(error).__name__ + " " + str(error.errno)
for place in sys.argv[1:]:
    host, port = place.rsplit(":", 1)
    print(place, tried(host, int(port)), flush=True)
"#;

fn asked(url: &str) -> String {
    format!(
        r#"import os, urllib.request, urllib.error
try:
    print(urllib.request.urlopen("{url}", timeout=10).read().decode())
except urllib.error.HTTPError as error:
    print(error.code, error.read().decode())"#
    )
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nothing_but_the_proxy_is_reachable_and_it_comes_back_after_a_restart() {
    let (host, server) = (Host::new(), Server::answering(Some(ANSWER.to_vec())).await);
    let sandbox = sandbox_on(&host).await;
    let port = server.address.port();
    let names = Arc::new(Names::default());
    names.lead("registry.example", &[&["127.0.0.1"]]);
    let policy = || Policy {
        networks: vec!["127.0.0.1/32".parse().unwrap()],
        resolver: Arc::clone(&names) as _,
        ..Policy::new(patterns(&[format!("registry.example:{port}")]))
    };
    let notes = Arc::new(Notes::default());
    let egress = serve(&*sandbox, policy(), Arc::clone(&notes) as _).await.unwrap().expect("something is allowed");

    let places = [
        format!("127.0.0.1:{port}"),
        "169.254.169.254:80".to_owned(),
        "9.9.9.9:53".to_owned(),
        "10.0.0.1:443".to_owned(),
        "::1:7081".to_owned(),
        "registry.example:443".to_owned(),
        format!("127.0.0.1:{PORT}"),
    ];
    let said = say(&sandbox, &format!("python3 -c '{PROBE}' {}", places.join(" "))).await;
    let lines: Vec<_> = said.lines().collect();
    assert_eq!(lines.len(), places.len(), "{said}");
    let (proxy, others) = lines.split_last().unwrap();
    assert!(proxy.ends_with(" open"), "{said}");
    assert!(others.iter().all(|line| !line.ends_with(" open")), "{said}");

    let ask = |url: String| format!("python3 -c '{}'", asked(&url));
    assert_eq!(say(&sandbox, &ask(format!("http://registry.example:{port}/"))).await.trim(), "hello");
    let refusal = say(&sandbox, &ask("http://evil.example/".to_owned())).await;
    assert!(refusal.starts_with("403 ") && refusal.contains("(not-allowed)"), "{refusal}");
    // By hand, around the variables that except the loopback: the gateway's port and the host's own.
    for (target, reason) in [
        ("127.0.0.1:7080", Reason::AddressLiteral),
        ("localhost:7080", Reason::LocalName),
        (&*format!("127.0.0.1:{port}"), Reason::AddressLiteral),
        ("169.254.169.254:80", Reason::AddressLiteral),
    ] {
        let dial =
            format!("exec 3<>/dev/tcp/127.0.0.1/{PORT}; printf 'CONNECT {target} HTTP/1.1\\r\\n\\r\\n' >&3; cat <&3");
        let answer = say(&sandbox, &dial).await;
        assert!(answer.contains(&format!("({reason})")), "{target}: {answer}");
    }
    // A tunnel that stays open while the server goes.
    let left = "exec 3<>/dev/tcp/127.0.0.1/7081; printf 'CONNECT registry.example:{port} HTTP/1.1\\r\\n\\r\\n' >&3; \
                (sleep 60 <&3 &) ; echo left";
    assert!(say(&sandbox, &left.replace("{port}", &port.to_string())).await.contains("left"));
    let bytes = egress.bytes();
    assert!(bytes.received > 0 && bytes.sent > 0);
    egress.end().await;
    let decisions = notes.decisions();
    for reason in [Reason::NotAllowed, Reason::AddressLiteral, Reason::LocalName] {
        assert!(refused(&decisions, reason), "{reason}: {decisions:?}");
    }
    assert!(decisions.iter().any(|known| known.verdict == Verdict::Allowed && known.host == "registry.example"));
    let closed = say(&sandbox, &format!("python3 -c '{PROBE}' 127.0.0.1:{PORT}")).await;
    assert!(closed.contains("ConnectionRefusedError"), "{closed}");

    // Another server finds the sandbox and serves it again.
    let again = host.restarted().attach(sandbox.id()).await.unwrap().expect("it runs");
    let egress = serve(&*again, policy(), Arc::new(Notes::default())).await.unwrap().expect("something is allowed");
    assert_eq!(say(&again, &ask(format!("http://registry.example:{port}/"))).await.trim(), "hello");
    drop(egress);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn with_an_empty_list_nothing_listens() {
    let host = Host::new();
    let sandbox = host.start(host.id()).await;
    assert!(serve(&*sandbox, Policy::new(Vec::new()), Arc::new(Notes::default())).await.unwrap().is_none());
    let closed =
        say(&sandbox, &format!("python3 -c '{PROBE}' 127.0.0.1:{PORT}; env | grep -i proxy || echo none")).await;
    assert!(closed.contains("ConnectionRefusedError") && closed.ends_with("none\n"), "{closed}");
}

/// A client that has learnt which hosts it needs by being refused.
struct Learning {
    hosts: BTreeSet<String>,
    networks: Vec<Network>,
    decisions: Vec<Decision>,
}

/// What came of a client's tries.
#[derive(Debug, PartialEq)]
enum Came {
    /// It did its work through the proxy.
    Through,
    /// This machine itself has no way to its registry.
    NoWay(String),
}

impl Learning {
    fn new() -> Self {
        // One that nobody needs, so that there is a proxy at all.
        Self { hosts: BTreeSet::from(["nobody.example".to_owned()]), networks: Vec::new(), decisions: Vec::new() }
    }

    fn policy(&self) -> Policy {
        let hosts: Vec<_> = self.hosts.iter().cloned().collect();
        Policy { networks: self.networks.clone(), ..Policy::new(patterns(&hosts)) }
    }

    /// Takes in what was refused. `None`: nothing new.
    async fn learn(&mut self, decisions: Vec<Decision>) -> Option<Came> {
        let asked = decisions.iter().filter(|known| known.verdict == Verdict::of(Reason::NotAllowed));
        let new: Vec<_> = asked.map(|known| (known.host.clone(), known.port)).collect();
        self.decisions.extend(decisions);
        let mut learnt = None;
        for (host, port) in new {
            // On this machine, as an operator would find out before writing `egress.networks`.
            let found =
                tokio::net::lookup_host((&*host, port)).await.map(Iterator::collect::<Vec<_>>).unwrap_or_default();
            let Some(address) = found.first() else { return Some(Came::NoWay(host)) };
            let dialled = tokio::time::timeout(Duration::from_secs(10), TcpStream::connect(address)).await;
            if !matches!(dialled, Ok(Ok(_))) {
                return Some(Came::NoWay(host));
            }
            for address in found {
                let prefix = if address.is_ipv4() { 32 } else { 128 };
                self.networks.push(format!("{}/{prefix}", address.ip()).parse().unwrap());
            }
            if self.hosts.insert(format!("{host}:{port}")) {
                learnt = Some(Came::Through);
            }
        }
        learnt
    }

    fn judge(&self, what: &str) {
        let of = |verdict: fn(Verdict) -> bool| self.decisions.iter().find(|known| verdict(known.verdict)).cloned();
        let first = of(|verdict| verdict == Verdict::of(Reason::NotAllowed)).expect("it was refused at first");
        let allowed = self.decisions.iter().filter(|known| known.verdict == Verdict::Allowed);
        let received: u64 = allowed.clone().map(|known| known.bytes.received).sum();
        assert!(allowed.clone().any(|known| known.host == first.host), "{what}: {:?}", self.decisions);
        assert!(received > 0, "{what}: {:?}", self.decisions);
    }
}

/// Runs a script in a sandbox until it succeeds, each time with the hosts that it was refused before.
async fn in_sandbox(sandbox: &Arc<dyn Sandbox>, what: &str, script: &str) -> Came {
    let mut learning = Learning::new();
    let mut said = String::new();
    for round in 0..ROUNDS {
        let notes = Arc::new(Notes::default());
        let egress: Egress = serve(&**sandbox, learning.policy(), Arc::clone(&notes) as _).await.unwrap().unwrap();
        let exec = Exec {
            id: format!("{what}-{round}"),
            argv: ["bash", "-ec", script].map(str::to_owned).to_vec(),
            env: certificates_inside(),
            cwd: "/tmp".into(),
            stdin: Vec::new(),
            timeout: CLIENT,
        };
        let outcome = sandbox.exec(exec, None).await.unwrap();
        egress.end().await;
        said = super::host::text(&outcome);
        let decisions = notes.decisions();
        if outcome.exit == Exit::Code(0) {
            assert!(round > 0, "{what} has worked with no host allowed: {said}");
            learning.decisions.extend(decisions);
            learning.judge(what);
            return Came::Through;
        }
        match learning.learn(decisions).await {
            Some(no_way @ Came::NoWay(_)) => return no_way,
            Some(Came::Through) => {}
            None => break,
        }
    }
    panic!("{what} does not work through the proxy: {said}\n{:?}", learning.decisions);
}

/// Where the test's own machine keeps the certificates that it believes.
fn certificates() -> PathBuf {
    std::env::var_os("SSL_CERT_FILE").map_or_else(|| "/etc/ssl/certs/ca-certificates.crt".into(), PathBuf::from)
}

const INSIDE: &str = "/home/agent/certificates.crt";

/// A machine between the host and the registries may have certificates of its own, which the image does not know.
fn certificates_inside() -> Vec<(String, String)> {
    ["NODE_EXTRA_CA_CERTS", "PIP_CERT", "SSL_CERT_FILE"].map(|name| (name.to_owned(), INSIDE.to_owned())).to_vec()
}

async fn put(sandbox: &Arc<dyn Sandbox>, path: &str, content: Vec<u8>) {
    let exec = Exec {
        id: format!("put-{path}"),
        argv: ["bash", "-c", r#"cat >"$0""#, path].map(str::to_owned).to_vec(),
        env: Vec::new(),
        cwd: "/".into(),
        stdin: content,
        timeout: CLIENT,
    };
    assert_eq!(sandbox.exec(exec, None).await.unwrap().exit, Exit::Code(0), "{path}");
}

/// Where there is no way to the registries, a server of the test's own is asked instead: the client uses the proxy.
async fn stand_in(sandbox: &Arc<dyn Sandbox>, what: &str, script: &str) {
    let server = Server::answering(Some(b"HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\n\r\n".to_vec())).await;
    let port = server.address.port();
    let names = Arc::new(Names::default());
    names.lead("registry.example", &[&["127.0.0.1"]]);
    let policy = Policy {
        networks: vec!["127.0.0.1/32".parse().unwrap()],
        resolver: Arc::clone(&names) as _,
        ..Policy::new(patterns(&[format!("registry.example:{port}")]))
    };
    let notes = Arc::new(Notes::default());
    let egress = serve(&**sandbox, policy, Arc::clone(&notes) as _).await.unwrap().unwrap();
    say(sandbox, &script.replace("{url}", &format!("http://registry.example:{port}"))).await;
    egress.end().await;
    assert!(String::from_utf8_lossy(&server.heard()).starts_with("GET /"), "{what} has not asked through the proxy");
    assert!(notes.decisions().iter().any(|known| known.verdict == Verdict::Allowed), "{what}");
}

async fn client(what: &str, prepare: Option<(&str, Vec<u8>)>, script: &str, stood_in: &str) {
    let host = Host::new();
    let sandbox = sandbox_on(&host).await;
    put(&sandbox, INSIDE, std::fs::read(certificates()).unwrap()).await;
    if let Some((path, content)) = prepare {
        put(&sandbox, path, content).await;
    }
    match in_sandbox(&sandbox, what, script).await {
        Came::Through => println!("{what} works through the proxy against this machine's registry"),
        Came::NoWay(registry) => {
            println!("{what}: this machine does not reach {registry}; a stand-in is asked instead");
            stand_in(&sandbox, what, stood_in).await;
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn npm_installs_through_the_proxy() {
    let script = "rm -rf npm && mkdir npm && cd npm && npm init -y >/dev/null && \
                  npm install --no-audit --no-fund --fetch-retries=0 is-number && test -f node_modules/is-number/index.js";
    client("npm", None, script, "cd /tmp && npm_config_registry={url}/ npm view is-number").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn pip_installs_through_the_proxy() {
    // The image has Python and no pip: that of this machine's Python goes along, if there is one.
    let find = "import ensurepip, glob, os; print(glob.glob(os.path.join(os.path.dirname(ensurepip.__file__), '_bundled', 'pip-*.whl'))[0])";
    let found = Command::new("python3").args(["-c", find]).stdin(Stdio::null()).output().await.unwrap();
    let wheel = PathBuf::from(String::from_utf8_lossy(&found.stdout).trim());
    let Ok(wheel) = std::fs::read(&wheel) else {
        println!("pip: this machine has none to lend; Python's own client is tried against a stand-in");
        let host = Host::new();
        let sandbox = sandbox_on(&host).await;
        return stand_in(&sandbox, "python", &format!("python3 -c '{}'", asked("{url}/simple/"))).await;
    };
    let pip = "python3 /home/agent/pip-0-py3-none-any.whl/pip";
    let script = format!(
        "rm -rf pip && {pip} install --retries 0 --no-input --no-cache-dir --target pip six && PYTHONPATH=pip python3 -c 'import six'"
    );
    let stood_in = format!("{pip} download --retries 0 --index-url {{url}}/simple/ six");
    client("pip", Some(("/home/agent/pip-0-py3-none-any.whl", wheel)), &script, &stood_in).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn apt_updates_and_downloads_through_the_proxy() {
    // Without root: its lists and archives in a folder of the agent's own.
    let apt = "mkdir -p apt/lists/partial apt/cache/archives/partial apt/files && \
               apt() { apt-get -o Dir::State::lists=/tmp/apt/lists -o Dir::Cache=/tmp/apt/cache -o Debug::NoLocking=1 \
               -o APT::Sandbox::User= -o Acquire::Check-Date=false -o Acquire::Check-Valid-Until=false -o Acquire::Retries=0 \
               -o APT::Update::Error-Mode=any \"$@\"; }";
    let script = format!("{apt}; apt update && cd apt/files && rm -f *.deb && apt download hello && ls *.deb");
    let stood_in = format!(
        "cd /tmp; {apt}; echo 'deb [trusted=yes] {{url}}/ ./' >apt/own.list; \
         apt -o Dir::Etc::sourcelist=/tmp/apt/own.list -o Dir::Etc::sourceparts=- update"
    );
    client("apt", None, &script, &stood_in).await;
}

/// cargo is in no image of ours: it runs beside the proxy, with the variables that a sandbox would have.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn cargo_fetches_through_the_proxy() {
    let folder = tempfile::tempdir().unwrap();
    let manifest = "[package]\nname = \"fetches\"\nversion = \"0.0.0\"\nedition = \"2021\"\n[lib]\npath = \"lib.rs\"\n\
                    [dependencies]\ncfg-if = \"1\"\n[workspace]\n";
    std::fs::write(folder.path().join("Cargo.toml"), manifest).unwrap();
    std::fs::write(folder.path().join("lib.rs"), "").unwrap();
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let mut learning = Learning::new();
    let mut said = String::new();
    for round in 0..ROUNDS {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
        let proxy = format!("http://{}", listener.local_addr().unwrap());
        let notes = Arc::new(Notes::default());
        let egress = serve_on(listener, learning.policy(), Arc::clone(&notes) as _);
        let own = variables().into_iter().map(|(name, value)| {
            let to_proxy = value.starts_with("http://");
            (name, if to_proxy { proxy.clone() } else { value })
        });
        let fetch = Command::new(&cargo)
            .args(["fetch", "--quiet"])
            .current_dir(folder.path())
            .env("CARGO_HOME", folder.path().join("home"))
            .env("CARGO_NET_RETRY", "0")
            .env("CARGO_HTTP_CAINFO", certificates())
            .envs(own)
            .stdin(Stdio::null())
            .kill_on_drop(true)
            .output();
        let output = tokio::time::timeout(CLIENT, fetch).await.expect("cargo ends").unwrap();
        egress.end().await;
        said = String::from_utf8_lossy(&output.stderr).into_owned();
        let decisions = notes.decisions();
        if output.status.success() {
            assert!(round > 0, "cargo has worked with no host allowed: {said}");
            learning.decisions.extend(decisions);
            return learning.judge("cargo");
        }
        match learning.learn(decisions).await {
            Some(Came::NoWay(registry)) => {
                // What it asked for first was refused and written down; that is what a stand-in would show too.
                println!("cargo: this machine does not reach {registry}; only its refusal is checked");
                return assert!(refused(&learning.decisions, Reason::NotAllowed));
            }
            Some(Came::Through) => {}
            None => break,
        }
    }
    panic!("cargo does not work through the proxy: {said}\n{:?}", learning.decisions);
}

/// What an operator names is what a name may lead to, also on a machine whose registries are somewhere odd.
#[tokio::test]
async fn a_registry_in_a_reserved_network_needs_the_operators_word() {
    let names = Arc::new(Names::default());
    names.lead("registry.example", &[&["203.0.113.10"]]);
    let address: IpAddr = "203.0.113.10".parse().unwrap();
    for (networks, reason) in [(vec![], Reason::ReservedAddress), (vec![format!("{address}/32")], Reason::Unreachable)]
    {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
        let proxy = listener.local_addr().unwrap();
        let notes = Arc::new(Notes::default());
        let policy = Policy {
            networks: networks.iter().map(|text| text.parse().unwrap()).collect(),
            resolver: Arc::clone(&names) as _,
            // A port on which nobody answers, wherever that network is.
            ..Policy::new(patterns(&["registry.example:1".to_owned()]))
        };
        let egress = serve_on(listener, policy, Arc::clone(&notes) as _);
        use tokio::io::{AsyncReadExt, AsyncWriteExt};
        let mut socket = TcpStream::connect(proxy).await.unwrap();
        socket.write_all(b"CONNECT registry.example:1 HTTP/1.1\r\n\r\n").await.unwrap();
        let mut answer = Vec::new();
        socket.read_to_end(&mut answer).await.unwrap();
        egress.end().await;
        // Somebody may answer on that port after all: then there was no word of ours against it.
        let open = reason == Reason::Unreachable && answer.starts_with(b"HTTP/1.1 200 ");
        assert!(open || refused(&notes.decisions(), reason), "{reason}: {}", String::from_utf8_lossy(&answer));
    }
}
