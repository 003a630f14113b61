//! What a crash leaves on the machine is gone after the next start, and what is still at work is not.

use serde_json::json;

use crate::harness::{House, Setup, bash, done, orphan, processes_of, script, until};

fn kill(pid: i32) {
    // SAFETY: a plain system call; the process is the helper of a sandbox of this test's own server.
    assert_eq!(unsafe { libc::kill(pid, libc::SIGKILL) }, 0);
}

/// `kill -9` to the helper of every sandbox of this house.
fn kill_helpers(house: &House) -> usize {
    let helpers = processes_of(&house.data()).into_iter().filter(|(_, command)| command.contains("sandbox-helper"));
    helpers.map(|(pid, _)| kill(pid)).count()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_nobody_owns_goes_and_what_works_stays() {
    let turns = json!([bash("echo a >> a.txt; sleep 7; echo b >> a.txt"), done()]);
    let mut house = Setup::new(script(turns)).open().await;
    let id = house.submit(json!({})).await;
    house.event(&id, "tool-called").await;
    let at_work = |house: &House| {
        let processes = processes_of(&house.data()).into_iter();
        processes.filter(|(_, command)| command.starts_with("sleep 7")).map(|(pid, _)| pid).collect::<Vec<_>>()
    };
    until("the tool runs", || at_work(&house).len() == 1).await;
    let working = at_work(&house);
    house.kill().await;
    let orphan = orphan(&house.data()).await.to_string();
    let of_the_orphan = |house: &House| house.traces().into_iter().filter(|trace| trace.contains(&orphan)).count();
    // Processes, mounts, groups, a loop device, folders.
    assert!(of_the_orphan(&house) >= 7, "{:#?}", house.traces());
    assert_eq!(kill_helpers(&house), 2);
    house.restart().await;
    until("the orphan is gone", || of_the_orphan(&house) == 0).await;
    assert_eq!(at_work(&house), working, "the task's own sandbox goes on");
    let task = house.ended(&id).await;
    assert_eq!(task["status"], "succeeded", "{task:#}");
    assert_eq!(house.remotes.file(task["branch"].as_str().unwrap(), "a.txt"), "a\nb");
    house.nothing_left().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_sandboxes_of_forgotten_tasks_go() {
    let mut house = Setup::new(script(json!([bash("sleep 1000 & sleep 60"), done()]))).open().await;
    for _ in 0..2 {
        let id = house.submit(json!({})).await;
        house.event(&id, "tool-called").await;
    }
    house.kill().await;
    kill_helpers(&house);
    assert!(house.traces().len() > 10);
    // An older back-up is put in place: it knows nothing of these tasks.
    for entry in std::fs::read_dir(house.data()).unwrap().flatten() {
        if entry.file_name().to_string_lossy().contains(".db") {
            std::fs::remove_file(entry.path()).unwrap();
        }
    }
    std::fs::remove_dir_all(house.data().join("calls")).unwrap();
    house.restart().await;
    house.nothing_left().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_lost_sandbox_is_replaced_and_the_model_is_told() {
    let turns = json!([bash("echo a > a.txt"), bash("sleep 60"), bash("echo b > b.txt; cat a.txt"), done()]);
    let house = Setup::new(script(turns)).open().await;
    let id = house.submit(json!({})).await;
    house.event_after(&id, Some(11), |frame| frame.kind == "tool-called").await;
    until("the tool runs", || processes_of(&house.data()).iter().any(|(_, command)| command.starts_with("sleep")))
        .await;
    // As after a restart of the machine: every process of it is gone, its disk is not.
    for (pid, command) in processes_of(&house.data()) {
        if !command.contains("sandbox-helper") {
            // SAFETY: a plain system call; the process is in a sandbox of this test's own server, or gone with its first.
            unsafe { libc::kill(pid, libc::SIGKILL) };
        }
    }
    let task = house.ended(&id).await;
    assert_eq!(task["status"], "succeeded", "{task:#}");
    let events = house.events(&id).await;
    let outcomes: Vec<_> = events.iter().filter_map(|event| event["data"]["outcome"].as_str()).collect();
    assert_eq!(outcomes, ["ok", "interrupted", "ok", "pushed"]);
    let branch = task["branch"].as_str().unwrap();
    assert_eq!((house.remotes.file(branch, "a.txt"), house.remotes.file(branch, "b.txt")), ("a".into(), "b".into()));
    assert_eq!(house.model.requests().await.turns(), [0, 1, 2, 3]);
    house.nothing_left().await;
}
