//! Whatever a model says or its commands do, the answer is bounded, the failure has a name, and the server lives on.

use std::fs;
use std::net::SocketAddr;
use std::path::Path;
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

use crate::harness::{House, Setup, bash, done};

/// How much more memory the server may hold after all of it than before, in KiB.
const MORE_MEMORY: u64 = 150 * 1024;
/// The longest answer of a tool that a model is shown, with the words around it.
const LONGEST_OUTPUT: usize = 32 * 1024;

/// A line of `/proc/PID/status`, in KiB.
fn memory(house: &House, line: &str) -> u64 {
    let status = fs::read_to_string(format!("/proc/{}/status", house.server.as_ref().unwrap().id())).unwrap();
    let line = status.lines().find_map(|found| found.strip_prefix(&format!("{line}:"))).unwrap();
    line.trim().trim_end_matches(" kB").parse().unwrap()
}

/// A well-behaved task, from its submission to its branch.
async fn a_good_task_succeeds(house: &House) {
    let id = house.submit(json!({ "task": "a good task" })).await;
    let task = house.ended(&id).await;
    assert_eq!(task["status"], "succeeded", "{task:#}");
    assert_eq!(house.remotes.file(task["branch"].as_str().unwrap(), "good"), "good");
    assert_eq!(house.api.text("/healthz").await, "ok\n");
}

fn a_good_conversation() -> Value {
    json!({ "match": "a good task", "turns": [bash("printf good > good"), done()] })
}

/// What is expected of a task's end.
enum End {
    /// A branch with these files beside those of the repository.
    Pushed(&'static [&'static str]),
    /// One of these failures.
    Failed(&'static [&'static str]),
    /// Either.
    Any(&'static [&'static str]),
    /// One of these failures, or a branch with just these files beside those of the repository.
    WholeOr(&'static [&'static str], &'static [&'static str]),
}

/// A command, with its limit in seconds, and what its answer must hold.
type Tool = (String, u64, &'static [&'static str]);

struct Case {
    word: &'static str,
    tools: Vec<Tool>,
    end: End,
}

fn case(word: &'static str, tools: &[(&str, u64, &'static [&'static str])], end: End) -> Case {
    let tools = tools.iter().map(|(command, limit, expected)| ((*command).to_owned(), *limit, *expected)).collect();
    Case { word, tools, end }
}

impl Case {
    fn conversation(&self) -> Value {
        let call = |(command, limit, _): &Tool| json!({ "tools": [{ "name": "bash", "input": { "command": command, "timeout_seconds": limit } }] });
        let turns: Vec<Value> = self.tools.iter().map(call).chain([done()]).collect();
        json!({ "match": format!("task {}.", self.word), "turns": turns })
    }

    async fn submit(&self, house: &House) -> String {
        // What keeps the sandbox busy for ever ends at the task's own clock.
        let seconds = if matches!(self.word, "forks-away" | "false-git") { 15 } else { 90 };
        house.submit(json!({ "task": format!("task {}.", self.word), "timeoutSeconds": seconds })).await
    }

    async fn check(&self, house: &House, id: &str) {
        let word = self.word;
        let task = house.ended(id).await;
        let events = house.events(id).await;
        let answers: Vec<&Value> = events.iter().filter(|event| event["type"] == "tool-finished").collect();
        let out_of_time = task["failure"]["code"] == "sandbox-timeout";
        assert!(answers.len() == self.tools.len() || out_of_time, "{word}: every call is answered: {task:#}");
        for ((command, limit, expected), answer) in self.tools.iter().zip(answers) {
            let answer = &answer["data"];
            let output = answer["output"].as_str().unwrap();
            assert!(output.len() < LONGEST_OUTPUT, "{word}: {} bytes", output.len());
            let whole = format!("{} {output}", answer["outcome"].as_str().unwrap());
            assert!(
                expected.is_empty() || expected.iter().any(|part| whole.contains(part)),
                "{word}: {command:.60} answered {whole:.500}, expected one of {expected:?}"
            );
            let took = answer["durationMs"].as_u64().unwrap();
            assert!(took < limit * 1_000 + 15_000, "{word}: {took} ms");
        }
        let code = task["failure"]["code"].as_str();
        let pushed = |files: &[&str]| {
            assert_eq!(task["status"], "succeeded", "{word}: {task:#}");
            let mut expected: Vec<&str> =
                ["README.md", "main.tf", "src/app.py"].into_iter().chain(files.iter().copied()).collect();
            expected.sort_unstable();
            assert_eq!(house.remotes.files(task["branch"].as_str().unwrap()), expected, "{word}");
        };
        match self.end {
            End::Pushed(files) => pushed(files),
            End::Failed(codes) => assert!(code.is_some_and(|code| codes.contains(&code)), "{word}: {task:#}"),
            End::WholeOr(files, _) if code.is_none() => pushed(files),
            End::WholeOr(_, codes) | End::Any(codes) => {
                assert!(code.is_none_or(|code| codes.contains(&code)), "{word}: {task:#}")
            }
        }
        if code.is_some() {
            let failure = &task["failure"];
            assert!(failure["message"].as_str().is_some_and(|text| text.len() > 10), "{word}: {failure}");
            assert!(failure["hint"].as_str().is_some_and(|text| text.len() > 10), "{word}: {failure}");
            assert!(house.remotes.pushes(task["branch"].as_str().unwrap()) == 0, "{word}: nothing is pushed");
        }
    }
}

/// Runs the cases, eight at a time, with good tasks in between; then looks at what they left.
async fn run(cases: Vec<Case>, outside: &Path) -> House {
    let script: Vec<Value> = cases.iter().map(Case::conversation).chain([a_good_conversation()]).collect();
    fs::write(outside.join("canary"), "untouched").unwrap();
    let house = Setup::new(script.into()).config("most_failures = 2").open().await;
    a_good_task_succeeds(&house).await;
    let before = memory(&house, "VmRSS");
    let mut ids = Vec::new();
    for case in &cases {
        ids.push(case.submit(&house).await);
    }
    a_good_task_succeeds(&house).await;
    for (case, id) in cases.iter().zip(&ids) {
        case.check(&house, id).await;
    }
    a_good_task_succeeds(&house).await;
    let after = memory(&house, "VmRSS");
    assert!(after < before + MORE_MEMORY, "{before} KiB became {after} KiB");
    let left: Vec<_> = fs::read_dir(outside).unwrap().flatten().map(|entry| entry.file_name()).collect();
    assert_eq!(left, ["canary"]);
    assert_eq!(fs::read_to_string(outside.join("canary")).unwrap(), "untouched");
    house.nothing_left().await;
    house
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_command_that_takes_all_it_can_gets_no_more_than_its_share() {
    let outside = tempfile::tempdir().unwrap();
    let work: (&str, u64, &'static [&'static str]) = ("echo x > x && echo written", 60, &["written"]);
    let setsid =
        "python3 -c \"import os\nwhile True:\n  try:\n    if os.fork() == 0: os.setsid()\n  except OSError: pass\"";
    let cases = vec![
        case(
            "loud",
            &[("echo first; yes | head -c 100000000; echo last", 60, &["ok first\n"]), work],
            End::Pushed(&["x"]),
        ),
        case("errors", &[("yes >&2 | head -c 1; exit 3", 2, &["timed-out", "error"]), work], End::Pushed(&["x"])),
        case("one-line", &[("head -c 30000000 /dev/zero | tr '\\0' a", 60, &["ok aaa"]), work], End::Pushed(&["x"])),
        case("terminal", &[("head -c 1000000 /dev/urandom", 60, &["ok "]), work], End::Pushed(&["x"])),
        case("for-ever", &[("trap '' TERM INT HUP; sleep 1000", 2, &["timed-out "]), work], End::Pushed(&["x"])),
        case(
            "left-behind",
            &[("(setsid sleep 1000 &) ; sleep 1000 & disown; echo went", 30, &["ok went"]), work],
            End::Pushed(&["x"]),
        ),
        case("closed", &[("exec >&- 2>&-; sleep 1000", 2, &["timed-out "]), work], End::Pushed(&["x"])),
        case("stopped", &[("kill -STOP $$", 2, &["timed-out "]), work], End::Pushed(&["x"])),
        case(
            "forks",
            &[(":(){ :|:& };:; sleep 100", 3, &["timed-out "]), ("echo alive", 10, &[]), work],
            End::Any(&["push-rejected", "sandbox-timeout"]),
        ),
        // Out of the session that is killed: the sandbox stays full of processes. The end is a failure with a name.
        case(
            "forks-away",
            &[(setsid, 3, &["timed-out ", "error "]), ("echo alive", 10, &[])],
            End::Any(&["push-rejected", "nothing-to-push", "sandbox-timeout"]),
        ),
        case(
            "threads",
            &[
                (
                    "python3 -c \"import threading,time\nwhile True: threading.Thread(target=time.sleep,args=(100,)).start()\"",
                    4,
                    &["can't start new thread", "out-of-memory "],
                ),
                work,
            ],
            End::Pushed(&["x"]),
        ),
        case(
            "files-open",
            &[
                (
                    "python3 -c \"l=[]\nwhile True: l.append(open('/dev/null'))\"",
                    30,
                    &["Too many open files", "out-of-memory"],
                ),
                work,
            ],
            End::Pushed(&["x"]),
        ),
        case("disk", &[("cat /dev/zero > fill; rm fill", 60, &["No space left"]), work], End::Pushed(&["x"])),
        case("disk-stays", &[("cat /dev/zero > fill", 60, &["No space left"])], End::Failed(&["sandbox-disk-full"])),
        case(
            "inodes",
            &[(
                "python3 -c \"import os\ni=0\ntry:\n  while True: os.mkdir('/var/tmp/%d'%i); i+=1\nexcept OSError as e: print(e)\"",
                60,
                &["No space left", "timed-out"],
            )],
            End::Any(&["nothing-to-push", "sandbox-disk-full"]),
        ),
        case(
            "tmp",
            &[("cat /dev/zero > /tmp/fill; cat /dev/zero > /dev/shm/fill", 60, &["No space left"]), work],
            End::Pushed(&["x"]),
        ),
        case(
            "memory",
            &[("python3 -c 'x = bytearray(3 << 30)'", 60, &["out-of-memory ", "MemoryError"]), work],
            End::Pushed(&["x"]),
        ),
        case(
            "memory-slowly",
            &[
                ("python3 -c \"l=[]\nwhile True: l.append(bytearray(1<<20))\"", 60, &["out-of-memory ", "MemoryError"]),
                work,
            ],
            End::Pushed(&["x"]),
        ),
        case(
            "kills",
            &[
                ("kill -9 -1; for p in /proc/[0-9]*; do kill -9 ${p#/proc/} 2>/dev/null; done", 30, &["error ", "ok "]),
                ("echo alive", 30, &["ok alive"]),
                work,
            ],
            End::Pushed(&["x"]),
        ),
        case(
            "stops-others",
            &[("(sleep 100 &); kill -STOP -1; kill -9 1; echo on", 5, &[]), ("echo alive", 30, &["ok alive"]), work],
            End::Pushed(&["x"]),
        ),
    ];
    let house = run(cases, outside.path()).await;
    // The bytes of the loud one are counted, not kept.
    let (_, tasks) = house.api.get("/v1/tasks?limit=200").await;
    let loud = tasks["data"].as_array().unwrap().iter().find(|task| task["task"] == "task loud.").unwrap();
    let events = house.events(loud["id"].as_str().unwrap()).await;
    let answer = events.iter().find(|event| event["type"] == "tool-finished").unwrap();
    assert!(answer["data"]["omittedBytes"].as_u64().unwrap() > 99_900_000, "{answer}");
    assert!(answer["data"]["output"].as_str().unwrap().ends_with("last\n[exit code 0]"));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_work_tree_that_is_a_trap_harms_nobody() {
    let outside = tempfile::tempdir().unwrap();
    let at = outside.path().display();
    let run_me = format!("touch {at}/pwned /workspace/PWNED; cat");
    let hooks = format!(
        "for hook in pre-commit post-commit post-checkout post-index-change reference-transaction pre-push prepare-commit-msg fsmonitor-watchman; do \
           printf '#!/bin/sh\\n{run_me}\\n' > .git/hooks/$hook; chmod +x .git/hooks/$hook; done; \
         git config core.hooksPath /workspace/.git/hooks; git config core.fsmonitor '{run_me}'; git config core.sshCommand '{run_me}'; \
         git config core.pager '{run_me}'; git config core.editor '{run_me}'; git config credential.helper '!{run_me}'; \
         git config diff.external '{run_me}'; git config filter.x.clean '{run_me}'; git config filter.x.process '{run_me}'; \
         git config filter.x.required true; git config diff.x.textconv '{run_me}'; git config diff.x.command '{run_me}'; \
         git config alias.add '!{run_me}'; git config url.ext::sh.insteadOf file; git config remote.origin.url 'ext::sh -c {at}'; \
         git config uploadpack.packObjectsHook '{run_me}'; git config gpg.program '{run_me}'; git config commit.gpgSign true; \
         git config include.path {at}/canary; git config core.worktree {at}; printf '* filter=x diff=x\\n' > .git/info/attributes; \
         cp .git/config ~/.gitconfig; mkdir -p ~/.config/git; cp .git/config ~/.config/git/config; echo x > x; rm -f PWNED"
    );
    let one = |word, command: &str, end| case(word, &[(command, 60, &[])], end);
    let refused: &'static [&'static str] = &["push-rejected"];
    let cases = vec![
        one("hooks", &hooks, End::Pushed(&["x"])),
        one("no-git", "rm -rf .git; echo x > x", End::Failed(refused)),
        one("git-link", "rm -rf .git; ln -s / .git; echo x > x", End::Failed(refused)),
        one("git-loop", "rm -rf .git; ln -s .git .git; echo x > x", End::Failed(refused)),
        one("git-file", "rm -rf .git; echo 'gitdir: /etc' > .git; echo x > x", End::Failed(refused)),
        one("git-pipe", "rm -rf .git; mkfifo .git; echo x > x", End::Failed(refused)),
        one("git-elsewhere", "mv .git ~/elsewhere; ln -s ~/elsewhere .git; echo x > x", End::Any(refused)),
        one(
            "head-pipe",
            "rm .git/HEAD .git/config; mkfifo .git/HEAD .git/config .git/packed-refs .git/index.lock; echo x > x",
            End::Pushed(&["x"]),
        ),
        one(
            "exclude-pipe",
            "mkdir -p .git/info; rm -f .git/info/exclude; mkfifo .git/info/exclude; echo x > x",
            End::Pushed(&["x"]),
        ),
        one("objects-gone", "rm -rf .git/objects; ln -s /dev .git/objects; echo x > x", End::Failed(refused)),
        one(
            "objects-rubbish",
            "find .git/objects -type f -exec sh -c 'chmod u+w \"$1\"; echo rubbish > \"$1\"' _ {} \\; ; echo x > x",
            // Git may still have what it needs in memory of its own index; then the host checks what came out.
            End::WholeOr(&["x"], &["push-rejected", "internal"]),
        ),
        one(
            "alternates",
            "mkdir -p .git/objects/info; echo /proc/1/root/etc > .git/objects/info/alternates; echo x > x",
            End::Any(refused),
        ),
        one(
            "grafts",
            "git replace -f HEAD $(git commit-tree -m x $(git mktree < /dev/null)) 2>/dev/null; echo x > x",
            End::Pushed(&["x"]),
        ),
        one(
            "commits",
            "git config user.name a; git config user.email a@b; for i in $(seq 30); do echo $i > x; git add -A; git commit -qm $i; done",
            End::Pushed(&["x"]),
        ),
        one(
            "history",
            "git checkout -q --orphan new; git config user.name a; git config user.email a@b; echo x > x; git add -A; git commit -qm new",
            End::Pushed(&["x"]),
        ),
        one("many-files", "mkdir many; cd many; for i in $(seq 10000); do echo $i > f$i; done", End::Any(&[])),
        one(
            "deep",
            "d=.; for i in $(seq 300); do d=$d/aaaaaaaaaa; done; mkdir -p $d; echo x > $d/x",
            End::Any(refused),
        ),
        one("link-absolute", "ln -s /etc/passwd link; echo x > x", End::Failed(refused)),
        one("link-up", "ln -s ../../../../etc/shadow link; echo x > x", End::Failed(refused)),
        one("link-inside", "ln -s README.md link", End::Pushed(&["link"])),
        one("replaced-by-link", "rm -rf src; ln -s /etc src", End::Failed(refused)),
        one("newline", "printf x > $'a\\nb'", End::Failed(refused)),
        one("not-utf8", "printf x > $'bad\\xff\\xfe'", End::Any(refused)),
        one("escape-sequence", "printf x > $'\\e[2Jx'", End::Failed(refused)),
        one("dot-git", "mkdir -p sub/.GIT && echo x > sub/.GIT/config", End::Failed(refused)),
        one("short-name", "mkdir git~1; echo x > git~1/config", End::Failed(refused)),
        one("nested", "mkdir sub; cd sub; git init -q .; echo y > y; cd ..; echo x > x", End::Pushed(&["x"])),
        one(
            "submodule",
            "printf '[submodule \"x\"]\\n path = x\\n url = ext::sh -c touch%% {at}/pwned\\n' > .gitmodules",
            End::Any(refused),
        ),
        one("setuid", "cp /bin/true suid; chmod 6755 suid; ./suid && echo x > x", End::Pushed(&["suid", "x"])),
        one(
            "special",
            "mkfifo pipe; python3 -c \"import socket; socket.socket(socket.AF_UNIX).bind('sock')\"; chmod 0 README.md; chmod 644 README.md; echo x > x",
            End::Pushed(&["x"]),
        ),
        one("unreadable", "echo x > x; chmod 0 x", End::Any(refused)),
        one("locked", "echo x > x; chmod 0 .git", End::Any(refused)),
        one("home-locked", "echo x > x; chmod 0 ~", End::Pushed(&["x"])),
        one("large", "head -c 120000000 /dev/zero > large", End::Failed(refused)),
        one(
            "everything-gone",
            "rm -rf /workspace/* /workspace/.[a-z]* ~/.[a-z]* 2>/dev/null; cd /; rm -rf /usr/bin/git /bin/* 2>/dev/null; echo",
            End::Failed(refused),
        ),
        one(
            "false-git",
            "mkdir -p ~/.local/bin; printf '#!/bin/sh\\nwhile :; do echo tip; done\\n' > ~/.local/bin/git; chmod +x ~/.local/bin/git; echo x > x",
            End::Failed(&["push-rejected", "sandbox-timeout"]),
        ),
        one(
            "false-answer",
            "mkdir -p ~/.local/bin; printf '#!/bin/sh\\nif [ \"$1\" = init ]; then printf \"tip 1111111111111111111111111111111111111111\\\\nPACK\" >&1; head -c 50000000 /dev/urandom; fi; exec /usr/bin/git \"$@\"\\n' > ~/.local/bin/git; chmod +x ~/.local/bin/git; echo x > x",
            End::Any(&["push-rejected", "internal"]),
        ),
    ];
    let house = run(cases, outside.path()).await;
    let (_, tasks) = house.api.get("/v1/tasks?limit=200").await;
    let branch = |word: &str| {
        let sentence = format!("task {word}.");
        let task = tasks["data"].as_array().unwrap().iter().find(|task| task["task"] == sentence).unwrap();
        task["branch"].as_str().unwrap().to_owned()
    };
    assert_eq!(house.remotes.file(&branch("hooks"), "x"), "x", "no filter changed it");
    assert_eq!(house.remotes.files(&branch("many-files")).len(), 10_003);
    assert_eq!(house.remotes.commits(&branch("commits")), 30, "the agent's own commits are kept");
    let authors = crate::harness::git(&house.remotes.bare(), &["log", "--format=%an <%ae>", &branch("commits"), "-30"]);
    assert!(authors.lines().all(|author| author == "Orchestra <orchestra@localhost>"), "{authors}");
    let modes = crate::harness::git(&house.remotes.bare(), &["ls-tree", &branch("setuid"), "suid"]);
    assert!(modes.starts_with("100755 blob"), "{modes}");
}

/// Answers every request in the way its path's first part says, without end where it can.
async fn misbehave(mut stream: TcpStream) -> std::io::Result<()> {
    let mut request = Vec::new();
    let mut buffer = vec![0; 64 * 1024];
    let (head, length) = loop {
        let count = stream.read(&mut buffer).await?;
        if count == 0 {
            return Ok(());
        }
        request.extend_from_slice(&buffer[..count]);
        let Some(end) = request.windows(4).position(|four| four == b"\r\n\r\n") else { continue };
        let head = String::from_utf8_lossy(&request[..end]).to_ascii_lowercase();
        let length = head.lines().find_map(|line| line.strip_prefix("content-length: ")?.parse::<usize>().ok());
        let length = length.unwrap_or(0);
        if request.len() >= end + 4 + length {
            break (head, length);
        }
    };
    assert!(length > 0, "a request has a body");
    let mode = head.split('/').nth(1).unwrap_or_default().to_owned();
    let stream_head = "HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nConnection: close\r\n\r\n";
    let event = |data: &Value| format!("event: {}\ndata: {data}\n\n", data["type"].as_str().unwrap());
    let start =
        event(&json!({ "type": "message_start", "message": { "id": "m", "type": "message", "role": "assistant",
        "model": "m", "content": [], "stop_reason": null, "usage": { "input_tokens": 1, "output_tokens": 1 } } }));
    let text_start =
        event(&json!({ "type": "content_block_start", "index": 0, "content_block": { "type": "text", "text": "" } }));
    let text = event(
        &json!({ "type": "content_block_delta", "index": 0, "delta": { "type": "text_delta", "text": "x".repeat(16 * 1024) } }),
    );
    let tool = |input: &str| {
        [
            event(&json!({ "type": "content_block_start", "index": 0, "content_block": { "type": "tool_use", "id": "t", "name": "bash", "input": {} } })),
            event(&json!({ "type": "content_block_delta", "index": 0, "delta": { "type": "input_json_delta", "partial_json": input } })),
            event(&json!({ "type": "content_block_stop", "index": 0 })),
            event(&json!({ "type": "message_delta", "delta": { "stop_reason": "tool_use" }, "usage": { "output_tokens": 5 } })),
            event(&json!({ "type": "message_stop" })),
        ]
        .concat()
    };
    let for_ever = |first: String, again: String, pause: u64| (first, Some((again, pause)));
    let once = |all: String| (all, None);
    let (first, again) = match &*mode {
        "endless-text" => for_ever([stream_head, &start, &text_start].concat(), text, 0),
        "endless-line" => for_ever(format!("{stream_head}data: "), "x".repeat(64 * 1024), 0),
        "endless-lines" => for_ever(stream_head.to_owned(), ": x\n".repeat(16 * 1024), 0),
        "endless-head" => for_ever("HTTP/1.1 200 OK\r\n".to_owned(), format!("X-{}: x\r\n", "y".repeat(1_000)), 0),
        "endless-error" => for_ever("HTTP/1.1 500 No\r\nContent-Type: application/json\r\n\r\n{\"error\":\"".to_owned(), "x".repeat(64 * 1024), 0),
        "endless-page" => for_ever("HTTP/1.1 200 OK\r\nContent-Type: text/html\r\n\r\n".to_owned(), "<p>".repeat(16 * 1024), 0),
        "drip" => for_ever([stream_head, &start].concat(), event(&json!({ "type": "ping" })), 50),
        "drip-head" => for_ever("HTTP/1.1 200 OK\r\n".to_owned(), "X: x\r\n".to_owned(), 50),
        "html" => once("HTTP/1.1 200 OK\r\nContent-Type: text/html\r\nConnection: close\r\n\r\n<!doctype html><script>alert(1)</script>".to_owned()),
        "nonsense" => once("\u{1}\u{2}\u{3} no HTTP at all\r\n\r\n".to_owned()),
        "lies" => once("HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nContent-Length: 99999999999\r\n\r\ndata: {}\n\n".to_owned()),
        "zipped" => once("HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nContent-Encoding: gzip\r\nConnection: close\r\n\r\nxxxx".to_owned()),
        "elsewhere" => once("HTTP/1.1 302 Found\r\nLocation: http://169.254.169.254/latest\r\nContent-Length: 0\r\n\r\n".to_owned()),
        "deep" => once([stream_head, &start, &tool(&format!("{{\"command\": {}{}}}", "[".repeat(100_000), "]".repeat(100_000)))].concat()),
        "wide" => once([stream_head, &start, &tool(&json!({ "command": "x".repeat(20_000_000) }).to_string())].concat()),
        "blocks" => once([stream_head, &start].concat() + &(0..20_000).map(|index| event(&json!({ "type": "content_block_start", "index": index, "content_block": { "type": "text", "text": "x" } }))).collect::<String>()),
        "far-block" => once([stream_head, &start].concat() + &event(&json!({ "type": "content_block_start", "index": u64::MAX, "content_block": { "type": "text", "text": "x" } }))),
        "counts" => once([stream_head, &start.replace("\"input_tokens\":1", "\"input_tokens\":18446744073709551615"), &tool("{\"command\":\"true\"}").replace("\"output_tokens\":5", "\"output_tokens\":18446744073709551615")].concat()),
        other => panic!("no such mode: {other}"),
    };
    stream.write_all(first.as_bytes()).await?;
    // Without end, but for the patience of a test.
    let start = Instant::now();
    while let Some((again, pause)) = &again {
        stream.write_all(again.as_bytes()).await?;
        if *pause > 0 {
            tokio::time::sleep(Duration::from_millis(*pause)).await;
        }
        if start.elapsed() > Duration::from_secs(100) {
            break;
        }
    }
    stream.shutdown().await
}

async fn misbehaving_provider() -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            // A client that has heard enough closes; that is how these end.
            tokio::spawn(async move { drop(misbehave(stream).await) });
        }
    });
    address
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_model_that_answers_anything_at_all_ends_in_a_failure_with_a_name() {
    let provider = misbehaving_provider().await;
    let own = [
        "endless-text",
        "endless-line",
        "endless-lines",
        "endless-head",
        "endless-error",
        "endless-page",
        "drip",
        "drip-head",
        "html",
        "nonsense",
        "lies",
        "zipped",
        "elsewhere",
        "deep",
        "wide",
        "blocks",
        "far-block",
        "counts",
    ];
    let sections: String = own
        .iter()
        .map(|mode| {
            format!(
                "[models.{mode}]\ndialect = \"anthropic\"\nbase_url = \"http://{provider}/{mode}\"\nkey_required = false\n\
                 prices = [{{ model = \"*\", input = 3, output = 15 }}]\n"
            )
        })
        .collect();
    let fault = |kind: &str| json!({ "match": format!("fault {kind}."), "turns": [{ "text": "I begin.", "fault": { "kind": kind } }] });
    let faults = ["garbage", "badJson", "empty", "errorFirst", "errorEvent", "truncate", "reset"];
    let mut script: Vec<Value> = faults.iter().map(|kind| fault(kind)).collect();
    let raw = |name: &str, text: &str| json!({ "tools": [{ "name": name, "rawInput": text }] });
    let many: Vec<Value> = (0..300).map(|_| json!({ "name": "bash", "input": { "command": "true" } })).collect();
    let wrong = [
        raw("bash", "{\"command\": \"ls"),
        raw("bash", "[]"),
        raw("bash", "\"ls\""),
        raw("bash", "{\"command\": 7}"),
        raw("bash", "{\"cmd\": \"ls\"}"),
        raw("bash", "{\"command\": \"a\\u0000b\"}"),
        raw("bash", "{\"command\": \"ls\", \"timeout_seconds\": -1}"),
        raw("launch_missiles", "{}"),
        raw("../../bin/sh", "{\"command\": \"ls\"}"),
        raw("read", "{\"path\": \"/etc/shadow\"}"),
        raw("read", "{\"path\": \"../../../../proc/1/environ\"}"),
        raw("read", "{\"path\": \"/dev/zero\"}"),
        raw("write", "{\"path\": \"/usr/bin/x\", \"content\": \"x\"}"),
        raw("write", "{\"path\": \"a\\u0000b\", \"content\": \"x\"}"),
        raw("edit", "{\"path\": \"/dev/full\", \"old_string\": \"\", \"new_string\": \"x\"}"),
        raw("grep", "{\"pattern\": \"((((((a*)*)*)*)*)*)b\"}"),
        raw("grep", "{\"pattern\": \"(\"}"),
        raw("glob", "{\"pattern\": \"/**/*\"}"),
    ];
    script.push(json!({ "match": "wrong tools", "turns": wrong.iter().cloned().chain([bash("echo x > x"), done()]).collect::<Vec<_>>() }));
    script.push(json!({ "match": "too many tools", "turns": [{ "tools": many }, bash("echo x > x"), done()] }));
    script.push(a_good_conversation());
    let house = Setup::new(script.into()).config(&format!("most_failures = 1\n{sections}")).open().await;
    a_good_task_succeeds(&house).await;
    let before = memory(&house, "VmRSS");

    let mut ids = Vec::new();
    for mode in own {
        // Some only stop at the task's own clock: those that drip, and one that asks for the same tool again and again.
        let seconds = if matches!(mode, "drip" | "drip-head" | "deep") { 5 } else { 80 };
        let body = json!({ "task": mode, "model": format!("{mode}/m"), "timeoutSeconds": seconds });
        ids.push((mode, house.submit(body).await));
    }
    for kind in faults {
        ids.push((kind, house.submit(json!({ "task": format!("fault {kind}."), "timeoutSeconds": 80 })).await));
    }
    a_good_task_succeeds(&house).await;
    for (mode, id) in &ids {
        let task = house.ended(id).await;
        let code = task["failure"]["code"].as_str().unwrap_or_default();
        let known = match *mode {
            "drip" | "drip-head" | "deep" => code == "sandbox-timeout",
            // No budget holds so many tokens, and no sum of them overflows.
            "counts" => code == "budget-exceeded",
            "reset" => code == "network-dropped",
            _ => code.starts_with("model-") || code == "network-dropped",
        };
        assert!(known, "{mode}: {task:#}");
        let message = task["failure"]["message"].as_str().unwrap();
        assert!(message.len() < 2_000 && !message.contains('<'), "{mode}: {message}");
    }
    let wrong_tools = house.submit(json!({ "task": "wrong tools" })).await;
    let many_tools = house.submit(json!({ "task": "too many tools" })).await;
    let task = house.ended(&wrong_tools).await;
    assert_eq!(task["status"], "succeeded", "{task:#}");
    let events = house.events(&wrong_tools).await;
    let answers: Vec<&Value> = events.iter().filter(|event| event["type"] == "tool-finished").collect();
    assert_eq!(answers.len(), wrong.len() + 1);
    for (asked, answer) in wrong.iter().zip(&answers) {
        let output = answer["data"]["output"].as_str().unwrap();
        let tool = asked["tools"][0]["name"].as_str().unwrap();
        let harmless = matches!(tool, "grep" | "glob") || answer["data"]["outcome"] != "ok";
        assert!(harmless && !output.is_empty() && output.len() < LONGEST_OUTPUT, "{asked}: {answer}");
        assert!(!output.contains("root:"), "{asked}: {answer}");
    }
    let task = house.ended(&many_tools).await;
    let code = task["failure"]["code"].as_str();
    assert!(task["status"] == "succeeded" || code.is_some_and(|code| code.starts_with("model-")), "{task:#}");
    a_good_task_succeeds(&house).await;
    let after = memory(&house, "VmRSS");
    assert!(after < before + MORE_MEMORY, "{before} KiB became {after} KiB");
    house.nothing_left().await;
}
