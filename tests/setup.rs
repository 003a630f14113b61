//! A repository's setup script: what it makes is there when the agent starts, is made once for everybody who may share it,
//! and is nobody's work.

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::harness::{House, PATIENCE, Setup, bash, count, done, git, kinds, processes_of, script};

/// Makes dependencies that git ignores and a file that it does not, changes a file of the commit, leaves a process.
const SCRIPT: &str = r#"#!/bin/bash
set -euo pipefail
mkdir -p node_modules/left ~/.cache/tool
echo dep > node_modules/left/index.js
echo warm > ~/.cache/tool/state
date +%s%N > node_modules/stamp
echo made > made.txt
echo '# changed by the setup' >> README.md
setsid sleep 10000 < /dev/null > /dev/null 2>&1 &
echo "the script ran"
"#;

/// Puts files on a branch of the repository, as somebody else's commit; an empty text removes the file.
fn commit(house: &House, branch: &str, files: &[(&str, &str)]) {
    commit_in(&house.remotes.bare(), branch, files);
}

fn commit_in(bare: &Path, branch: &str, files: &[(&str, &str)]) {
    let dir = tempfile::tempdir().unwrap();
    git(dir.path(), &["clone", "--quiet", "--branch", branch, bare.to_str().unwrap(), "."]);
    for (path, text) in files {
        let path = dir.path().join(path);
        if text.is_empty() {
            std::fs::remove_file(path).unwrap();
        } else {
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(path, text).unwrap();
        }
    }
    git(dir.path(), &["add", "-A"]);
    git(dir.path(), &["commit", "--quiet", "-m", "Change"]);
    git(dir.path(), &["push", "--quiet", "origin", &format!("HEAD:{branch}")]);
}

/// A house whose repository has this script and ignores `node_modules`.
async fn house(setup: Setup, text: &str) -> House {
    let house = setup.open().await;
    commit(&house, "main", &[(".orchestra/setup.sh", text), (".gitignore", "node_modules/\n")]);
    house
}

/// The last `setup-finished` of these events.
fn finished(events: &[Value]) -> &Value {
    let mut all = events.iter().filter(|event| event["type"] == "setup-finished");
    &all.next_back().expect("a setup-finished")["data"]
}

/// Everything that tools have answered.
fn said(events: &[Value]) -> String {
    let all = events.iter().filter(|event| event["type"] == "tool-finished");
    all.map(|event| event["data"]["output"].as_str().unwrap_or_default()).collect::<Vec<_>>().join("\n")
}

/// Runs the usual task with these fields and gives it with its events.
async fn run(house: &House, more: Value) -> (Value, Vec<Value>) {
    let id = house.submit(more).await;
    let task = house.ended(&id).await;
    (task, house.events(&id).await)
}

async fn until(what: &str, is_so: impl Fn() -> bool) {
    let deadline = Instant::now() + PATIENCE;
    while !is_so() {
        assert!(Instant::now() < deadline, "still not so: {what}");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

/// The setups that are kept.
fn kept(house: &House) -> Vec<PathBuf> {
    let folder = std::fs::read_dir(house.data().join("sandboxes/setups")).unwrap();
    let visible = |path: &PathBuf| !path.file_name().unwrap().to_string_lossy().starts_with('.');
    folder.flatten().map(|entry| entry.path()).filter(visible).collect()
}

const LOOK: &str = "cat node_modules/left/index.js ~/.cache/tool/state made.txt; echo stamp $(cat node_modules/stamp); \
                    git status --porcelain; echo status; grep -c changed README.md; cat /proc/[0-9]*/comm | grep -c sleep; echo mine > agent.txt";

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_it_makes_is_there_and_is_made_once_and_is_nobodys_work() {
    let house = house(Setup::new(script(json!([bash(LOOK), done()]))), SCRIPT).await;
    let (task, events) = run(&house, json!({})).await;
    assert_eq!(task["status"], "succeeded", "{task:#}");
    let order = kinds(&events);
    let at = |kind| order.iter().position(|other| *other == kind).unwrap_or_else(|| panic!("no {kind}: {order:?}"));
    assert!(at("cloned") < at("setup-started") && at("setup-finished") < at("sandbox-started"), "{order:?}");
    let first = finished(&events);
    assert_eq!((&first["cached"], &first["done"], &first["exitCode"]), (&json!(false), &json!(true), &json!(0)));
    assert!(first["output"].as_str().unwrap().contains("the script ran"), "{first}");
    let answer = said(&events);
    // Nothing to be seen by git, no change in the commit's files, no process.
    assert!(answer.starts_with("dep\nwarm\nmade\nstamp "), "{answer}");
    assert!(answer.contains("\nstatus\n0\n0\n"), "{answer}");
    let branch = task["branch"].as_str().unwrap();
    assert_eq!(
        house.remotes.files(branch),
        [".gitignore", ".orchestra/setup.sh", "README.md", "agent.txt", "main.tf", "src/app.py"]
    );
    assert_eq!(house.remotes.file(branch, "README.md"), house.remotes.file("main", "README.md"));

    let (task, events) = run(&house, json!({})).await;
    assert_eq!(task["status"], "succeeded", "{task:#}");
    let second = finished(&events);
    assert_eq!((&second["cached"], &second["key"]), (&json!(true), &first["key"]), "{second}");
    assert_eq!(count(&events, "setup-started"), 0);
    assert!(second.get("exitCode").is_none() && second.get("output").is_none(), "{second}");
    assert_eq!(said(&events), answer, "the very same files");
    println!("made in {} ms, found in {} ms", first["durationMs"], second["durationMs"]);
    assert!(second["durationMs"].as_u64().unwrap() < 1_000, "{second}");
    assert_eq!(kept(&house).len(), 1);
    house.nothing_left().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_changed_input_makes_it_anew_and_one_that_it_does_not_name_does_not() {
    let turns = json!([bash("cat node_modules/stamp; ls; cat src/app.py; git status --porcelain; echo x > x"), done()]);
    let house = house(Setup::new(script(turns)), SCRIPT).await;
    let (_, events) = run(&house, json!({})).await;
    let whole = finished(&events)["key"].clone();
    commit(&house, "main", &[("other.txt", "1")]);
    let (_, events) = run(&house, json!({})).await;
    assert_eq!(finished(&events)["cached"], false, "the whole tree counts");
    assert_ne!(finished(&events)["key"], whole);

    // Touches a file of the commit, so that its own disk has a copy of it.
    let narrow = format!("{SCRIPT}\n# orchestra: inputs *.lock\necho x >> src/app.py; chmod 600 main.tf other.txt\n");
    commit(&house, "main", &[(".orchestra/setup.sh", &narrow), ("a.lock", "1")]);
    let (_, events) = run(&house, json!({})).await;
    assert_eq!(finished(&events)["cached"], false);
    let (narrowed, stamp) = (finished(&events)["key"].clone(), said(&events).lines().next().unwrap().to_owned());

    // A later commit changes a file, and removes one that the setup has changed.
    commit(&house, "main", &[("src/app.py", "print(2)\n"), ("other.txt", ""), ("new.txt", "new")]);
    let (task, events) = run(&house, json!({})).await;
    assert_eq!((&finished(&events)["cached"], &finished(&events)["key"]), (&json!(true), &narrowed));
    let answer = said(&events);
    let expected = format!("{stamp}\nREADME.md\na.lock\nmade.txt\nmain.tf\nnew.txt\nnode_modules\nsrc\nprint(2)\n");
    assert!(answer.starts_with(&expected), "{answer}");
    let branch = task["branch"].as_str().unwrap();
    assert_eq!(house.remotes.file(branch, "src/app.py"), "print(2)");
    assert!(!house.remotes.files(branch).iter().any(|name| name == "other.txt" || name == "made.txt"));

    commit(&house, "main", &[("a.lock", "2")]);
    let (_, events) = run(&house, json!({})).await;
    assert_eq!(finished(&events)["cached"], false);
    assert_ne!(finished(&events)["key"], narrowed);
    house.nothing_left().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nothing_is_shared_across_branches_repositories_or_teams() {
    let house = house(Setup::new(script(json!([bash("echo x > x"), done()]))), SCRIPT).await;
    git(&house.remotes.bare(), &["branch", "release", "main"]);
    let root = house.remotes.local_root();
    git(root, &["clone", "--quiet", "--bare", "acme/api.git", root.join("acme/fork.git").to_str().unwrap()]);
    let mut keys = Vec::new();
    // The same commit, every time.
    for more in [json!({}), json!({ "base": "release" }), json!({ "repo": "acme/fork" }), json!({ "team": "other" })] {
        let (task, events) = run(&house, more).await;
        assert_eq!((&task["status"], &finished(&events)["cached"]), (&json!("succeeded"), &json!(false)), "{task:#}");
        keys.push(finished(&events)["key"].clone());
    }
    keys.dedup();
    assert_eq!((keys.len(), kept(&house).len()), (4, 4));
    let (_, events) = run(&house, json!({ "base": "release" })).await;
    assert_eq!((&finished(&events)["cached"], &finished(&events)["key"]), (&json!(true), &keys[1]));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_script_that_fails_ends_the_task_with_its_words_and_before_a_model_is_paid() {
    let text =
        "for i in $(seq 3000); do echo line $i; done\nprintf 'no \\033[31mcompiler\\033[0m here\\n' >&2\nexit 3\n";
    let house = house(Setup::new(script(json!([bash("echo x > x"), done()]))), text).await;
    let (task, events) = run(&house, json!({})).await;
    let failure = &task["failure"];
    assert_eq!((&task["status"], &failure["code"]), (&json!("failed"), &json!("setup-failed")), "{task:#}");
    assert_eq!(failure["retryable"], false);
    let message = failure["message"].as_str().unwrap();
    assert!(message.starts_with(".orchestra/setup.sh ended with exit code 3."), "{message}");
    assert!(message.ends_with("no compiler here") && message.len() < 1_000, "{message}");
    let recorded = finished(&events);
    assert_eq!((&recorded["done"], &recorded["exitCode"]), (&json!(false), &json!(3)));
    let output = recorded["output"].as_str().unwrap();
    assert!(output.starts_with("line 1\n") && output.contains("no compiler here"), "{output}");
    assert_eq!(house.model.requests().await.len(), 0);
    assert_eq!(kept(&house).len(), 0);
    house.nothing_left().await;

    commit(&house, "main", &[(".orchestra/setup.sh", "dd if=/dev/zero of=big bs=1M 2>&1")]);
    let (task, _) = run(&house, json!({})).await;
    assert!(task["failure"]["hint"].as_str().unwrap().contains("sandbox.disk"), "{task:#}");

    // What cannot be run is told in the same way.
    commit(&house, "main", &[(".orchestra/setup.sh", "# orchestra: input Cargo.lock\n")]);
    let (task, _) = run(&house, json!({})).await;
    assert_eq!(task["failure"]["code"], "setup-failed");
    assert!(task["failure"]["message"].as_str().unwrap().contains("is not understood"), "{task:#}");
    house.nothing_left().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_script_that_hangs_is_ended_and_tried_again_within_bounds() {
    let setup = Setup::new(script(json!([bash("echo x > x"), done()])))
        .without_retry()
        .config("[retry]\nfirst_wait = \"20ms\"\nmost_failures = 2")
        .environment("ORCHESTRA_SANDBOX__SETUP_TIMEOUT", "1s");
    let house = house(setup, "echo begun\ntrap '' TERM INT\nsleep 1000 &\nsleep 1000\n").await;
    let (task, events) = run(&house, json!({})).await;
    assert_eq!((&task["status"], &task["failure"]["code"]), (&json!("failed"), &json!("setup-failed")), "{task:#}");
    assert!(task["failure"]["hint"].as_str().unwrap().contains("sandbox.setup_timeout"), "{task:#}");
    assert_eq!((count(&events, "setup-started"), count(&events, "step-failed")), (2, 2), "{:?}", kinds(&events));
    assert!(finished(&events).get("exitCode").is_none());
    assert_eq!(kept(&house).len(), 0);
    house.nothing_left().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn tasks_at_the_same_time_make_it_once_and_share_its_failure() {
    let turns = json!([bash("cat node_modules/stamp; echo x > x"), done()]);
    let house = house(Setup::new(script(turns)), &format!("{SCRIPT}\nsleep 1\n")).await;
    let mut ids = Vec::new();
    for _ in 0..4 {
        ids.push(house.submit(json!({})).await);
    }
    let (mut started, mut stamps) = (0, Vec::new());
    for id in &ids {
        let task = house.ended(id).await;
        assert_eq!(task["status"], "succeeded", "{task:#}");
        let events = house.events(id).await;
        started += count(&events, "setup-started");
        stamps.push(said(&events));
    }
    stamps.dedup();
    assert_eq!((started, stamps.len(), kept(&house).len()), (1, 1, 1), "{stamps:?}");

    commit(&house, "main", &[(".orchestra/setup.sh", "sleep 1; exit 7")]);
    let mut ids = Vec::new();
    for _ in 0..4 {
        ids.push(house.submit(json!({})).await);
    }
    let mut started = 0;
    for id in &ids {
        assert_eq!(house.ended(id).await["failure"]["code"], "setup-failed");
        started += count(&house.events(id).await, "setup-started");
    }
    assert_eq!(started, 1);
    house.nothing_left().await;
}

/// The processes of this house that run this command.
fn running(house: &House, command: &str) -> Vec<i32> {
    let processes = processes_of(&house.data()).into_iter();
    processes.filter(|(_, line)| line.starts_with(command)).map(|(pid, _)| pid).collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_kill_in_its_middle_does_not_begin_it_again() {
    let turns = json!([bash("cat runs.txt; echo x > x"), done()]);
    let mut house = house(Setup::new(script(turns)), "echo run >> runs.txt\nsleep 4\n").await;
    let id = house.submit(json!({})).await;
    house.event(&id, "setup-started").await;
    until("the script runs", || running(&house, "sleep 4").len() == 1).await;
    let before = running(&house, "sleep 4");
    house.kill().await;
    house.restart().await;
    assert_eq!(running(&house, "sleep 4"), before, "it goes on");
    let task = house.ended(&id).await;
    assert_eq!(task["status"], "succeeded", "{task:#}");
    let events = house.events(&id).await;
    assert_eq!((count(&events, "setup-started"), count(&events, "setup-finished")), (1, 1));
    assert!(said(&events).starts_with("run\n["), "{}", said(&events));
    house.nothing_left().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_whose_sandbox_died_with_the_server_is_made_anew_and_a_half_made_one_is_never_used() {
    let turns = json!([bash("cat node_modules/whole; echo x > x"), done()]);
    let text = "mkdir node_modules; echo half > node_modules/half\nsleep 3\necho whole > node_modules/whole\n";
    let mut house = house(Setup::new(script(turns)), text).await;
    let id = house.submit(json!({})).await;
    house.event(&id, "setup-started").await;
    until("the script runs", || running(&house, "sleep 3").len() == 1).await;
    house.kill().await;
    for (pid, _) in processes_of(&house.data()) {
        // SAFETY: a plain system call; the process is in a sandbox of this test's own server, or gone with its first.
        unsafe { libc::kill(pid, libc::SIGKILL) };
    }
    // What a process that was killed while it kept one leaves.
    let setups = house.data().join("sandboxes/setups");
    for name in [".partial-1", ".gone-1"] {
        std::fs::create_dir(setups.join(name)).unwrap();
        std::fs::write(setups.join(name).join("volume.ext4"), "half").unwrap();
    }
    std::fs::create_dir(setups.join("a".repeat(64))).unwrap();
    house.restart().await;
    let task = house.ended(&id).await;
    assert_eq!(task["status"], "succeeded", "{task:#}");
    assert!(said(&house.events(&id).await).starts_with("whole\n"));
    until("the rest is swept", || {
        let names: Vec<_> = std::fs::read_dir(&setups).unwrap().flatten().map(|entry| entry.file_name()).collect();
        names.len() == 2 && names.iter().any(|name| name == ".mask")
    })
    .await;
    house.nothing_left().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_cancel_ends_it() {
    let house = house(Setup::new(script(json!([done()]))), "sleep 1000\n").await;
    let id = house.submit(json!({})).await;
    house.event(&id, "setup-started").await;
    until("the script runs", || running(&house, "sleep 1000").len() == 1).await;
    assert_eq!(house.api.post(&format!("/v1/tasks/{id}/cancel"), &json!({})).await.0, 202);
    assert_eq!(house.ended(&id).await["status"], "cancelled");
    assert_eq!(kept(&house).len(), 0);
    house.nothing_left().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_used_stays_where_there_is_no_room_for_it_and_goes_afterwards() {
    let turns = json!([
        bash(
            "until [ -e /tmp/go ]; do sleep 0.1; [ $((i++)) -lt 50 ] || break; done; cat node_modules/left/index.js; echo x > x"
        ),
        done()
    ]);
    let setup = Setup::new(script(turns)).config("[cache]\nsetups_max_size = \"0\"");
    let mut house = house(setup, SCRIPT).await;
    let id = house.submit(json!({})).await;
    house.event(&id, "tool-called").await;
    assert_eq!(kept(&house).len(), 1);
    // A start makes a pass of the reaper.
    house.kill().await;
    house.restart().await;
    let task = house.ended(&id).await;
    assert_eq!(task["status"], "succeeded", "{task:#}");
    assert!(said(&house.events(&id).await).starts_with("dep\n"));
    house.nothing_left().await;
    house.kill().await;
    house.restart().await;
    until("it is gone", || kept(&house).is_empty()).await;
}

/// A script that does its worst and succeeds.
const VANDAL: &str = r#"
ln -sfn /etc/passwd README.md; ln -s /etc node_modules; ln -s ../../../../../../etc/shadow shadow
ln -s / root; mkfifo pipe; mkdir deep; chmod 000 deep; ln -s loop loop
touch .git/index.lock .git/HEAD.lock; rm -rf .git/hooks; mkdir -p .git/hooks
echo 'touch /tmp/hooked' > .git/hooks/pre-commit; chmod +x .git/hooks/pre-commit
git config core.fsmonitor 'touch /tmp/hooked'; git config core.hooksPath /tmp
mkdir -p ~/.config/git; ln -s /etc/passwd ~/.bashrc; chmod 000 ~ /workspace 2>/dev/null
chmod 755 ~ /workspace
mkdir -p /var/tmp/x; mv src elsewhere; mkdir src; touch src/x
setsid bash -c 'while true; do echo x >> /workspace/late; sleep 0.01; done' > /dev/null 2>&1 < /dev/null &
for i in $(seq 20); do sleep 1000 & done
rm -f .git/index.lock
dd if=/dev/zero of=big bs=1M 2>/dev/null
true
"#;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_hostile_script_harms_neither_the_host_nor_the_tasks_after_it() {
    let shadow = std::fs::read("/etc/shadow").unwrap();
    let turns = json!([
        bash(
            "readlink README.md; cat src/app.py; ls .git/*.lock; ls /tmp; git config core.hooksPath; \
              cat /proc/[0-9]*/comm | grep -c sleep; echo room > room.txt; git add room.txt && git commit -qm Mine && git log --oneline | wc -l"
        ),
        done()
    ]);
    let house = house(Setup::new(script(turns)), VANDAL).await;
    for cached in [false, true] {
        let (task, events) = run(&house, json!({})).await;
        assert_eq!(task["status"], "succeeded", "{task:#}");
        assert_eq!(finished(&events)["cached"], cached);
        let answer = said(&events);
        assert!(answer.starts_with("def greet(name):"), "its README is a file, and its sources are there: {answer}");
        assert!(!answer.contains("hooked") && !answer.contains(".lock\n"), "{answer}");
        assert!(answer.contains("\n0\n3\n["), "no process is left, and git commits: {answer}");
        let branch = task["branch"].as_str().unwrap();
        assert_eq!(
            house.remotes.files(branch),
            [".gitignore", ".orchestra/setup.sh", "README.md", "main.tf", "room.txt", "src/app.py"]
        );
        house.nothing_left().await;
    }
    assert_eq!(std::fs::read("/etc/shadow").unwrap(), shadow);

    // One that takes git away is told so.
    commit(&house, "main", &[(".orchestra/setup.sh", "rm -rf .git; echo gone\n")]);
    let (task, _) = run(&house, json!({})).await;
    assert_eq!(task["failure"]["code"], "setup-failed", "{task:#}");
    // And one that leaves more than git could be told of.
    commit(&house, "main", &[(".orchestra/setup.sh", "for i in $(seq 3000); do echo > f$i; done\n")]);
    let (task, _) = run(&house, json!({})).await;
    assert!(task["failure"]["hint"].as_str().unwrap().contains(".gitignore"), "{task:#}");
    house.nothing_left().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn of_several_repositories_each_has_its_script_run_in_its_folder() {
    let turns = json!([
        bash(
            "cat api/node_modules/left/index.js web/node_modules/web shared; (cd api; git status --porcelain); \
              echo x > api/x; echo y > web/y"
        ),
        done()
    ]);
    let house = house(Setup::new(script(turns)), SCRIPT).await;
    let root = house.remotes.local_root();
    git(root, &["clone", "--quiet", "--bare", "acme/api.git", root.join("acme/web.git").to_str().unwrap()]);
    git(&root.join("acme/web.git"), &["config", "core.logAllRefUpdates", "always"]);
    let script = "mkdir node_modules; echo web > node_modules/web; echo shared > ../shared\n";
    commit_in(&root.join("acme/web.git"), "main", &[(".orchestra/setup.sh", script)]);
    for cached in [false, true] {
        let mut payload = house.payload();
        payload.as_object_mut().unwrap().remove("repo");
        payload["repos"] = json!(["acme/api", "acme/web"]);
        let (status, task) = house.api.post("/v1/tasks", &payload).await;
        assert_eq!(status, 202, "{task}");
        let id = task["id"].as_str().unwrap();
        let task = house.ended(id).await;
        assert_eq!(task["status"], "succeeded", "{task:#}");
        let events = house.events(id).await;
        assert_eq!(finished(&events)["cached"], cached);
        assert!(said(&events).starts_with("dep\nweb\nshared\n["), "{}", said(&events));
        let branch = task["branch"].as_str().unwrap();
        assert!(!house.remotes.files(branch).iter().any(|name| name.contains("made")));
    }
    house.nothing_left().await;
}
