//! A sandbox's way out, through the whole server: what the operator and the task say is what the sandbox gets, before its
//! first command and after a restart, and every connection that it asks for is in the task's stream.

use std::net::{Ipv4Addr, ToSocketAddrs};

use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;

use crate::harness::{Frame, Setup, bash, done, script};

/// Asks the proxy for a tunnel and prints the answer; says so where nothing listens.
fn ask(target: &str) -> String {
    format!(
        "(exec 3<>/dev/tcp/127.0.0.1/7081 && printf 'CONNECT {target} HTTP/1.1\\r\\n\\r\\n' >&3 && cat <&3) || echo nobody"
    )
}

/// Every entry of the task's stream, as `verdict host:port reason`.
fn decisions(events: &[Value]) -> Vec<String> {
    let entries = events.iter().filter(|event| event["type"] == "egress-decided");
    let entries = entries.flat_map(|event| event["data"]["decisions"].as_array().unwrap().clone());
    let told = entries.filter(|entry| entry["count"] != 0).map(|entry| {
        let text = |name: &str| entry[name].as_str().unwrap_or_default().to_owned();
        format!("{} {}:{} {}", text("verdict"), text("host"), entry["port"], text("reason")).trim().to_owned()
    });
    told.collect()
}

fn outputs(events: &[Value]) -> Vec<String> {
    let finished = events.iter().filter(|event| event["type"] == "tool-finished");
    finished.map(|event| event["data"]["output"].as_str().unwrap_or_default().to_owned()).collect()
}

/// A server of this machine that its own name leads to, if the name leads anywhere.
async fn neighbour() -> Option<(String, String)> {
    let name = std::fs::read_to_string("/proc/sys/kernel/hostname").ok()?.trim().to_ascii_lowercase();
    let address =
        (&*name, 0).to_socket_addrs().ok()?.next().filter(|address| name != "localhost" && address.is_ipv4())?;
    let listener = TcpListener::bind((Ipv4Addr::UNSPECIFIED, 0)).await.ok()?;
    let port = listener.local_addr().ok()?.port();
    tokio::spawn(async move {
        while let Ok((mut socket, _)) = listener.accept().await {
            let mut buffer = [0; 4096];
            let _ = socket.read(&mut buffer).await;
            let _ = socket.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 9\r\n\r\nneighbour").await;
        }
    });
    Some((format!("{name}:{port}"), format!("{}/32", address.ip())))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_way_out_is_what_the_lists_say_and_is_written_down_across_a_restart() {
    let (host, network) = neighbour().await.unwrap_or_else(|| {
        println!("this machine's name leads nowhere: only refusals are tried");
        ("nobody.example:80".to_owned(), "192.0.2.1/32".to_owned())
    });
    let get = format!(
        "exec 3<>/dev/tcp/127.0.0.1/7081; printf 'GET http://{host}/ HTTP/1.1\\r\\nHost: {host}\\r\\n\\r\\n' >&3; cat <&3"
    );
    let turns = json!([
        bash(&format!("echo $https_proxy $CARGO_HTTP_PROXY $no_proxy; {}", ask("evil.example:443"))),
        bash(&get),
        bash("sleep 4; echo slept > slept.txt"),
        bash(&ask("late.example:443")),
        done(),
    ]);
    let config = format!("[egress]\nallow = [\"{host}\"]\npermit = [\"*.wide.example\"]\nnetworks = [\"{network}\"]\n");
    let mut house = Setup::new(script(turns)).config(&config).open().await;
    let id = house.submit(json!({})).await;
    assert_eq!(house.task(&id).await["egress"], json!([host]));
    house.event_after(&id, None, |frame| frame.kind == "tool-called" && frame.data.to_string().contains("slept")).await;
    // The last one before the server dies: what came before it is in the stream too.
    let name = host.split(':').next().unwrap();
    let about = |frame: &Frame| {
        let decisions = frame.data["data"]["decisions"].as_array().cloned().unwrap_or_default();
        frame.kind == "egress-decided" && decisions.iter().any(|decision| decision["host"] == name)
    };
    house.event_after(&id, None, about).await;
    house.kill().await;
    house.restart().await;
    let task = house.ended(&id).await;
    assert_eq!(task["status"], "succeeded", "{task:#}");

    let events = house.events(&id).await;
    let said = outputs(&events);
    assert!(said[0].starts_with("http://127.0.0.1:7081 http://127.0.0.1:7081 127.0.0.1,localhost,::1\n"), "{said:?}");
    assert!(said[0].contains("403 Forbidden") && said[0].contains("(not-allowed)"), "{said:?}");
    assert!(said[3].contains("(not-allowed)"), "served again after the restart: {said:?}");
    let decided = decisions(&events);
    for refused in ["refused evil.example:443 not-allowed", "refused late.example:443 not-allowed"] {
        assert_eq!(decided.iter().filter(|entry| *entry == refused).count(), 1, "{refused}: {decided:?}");
    }
    if network != "192.0.2.1/32" {
        assert!(said[1].contains("\n\nneighbour"), "{said:?}");
        assert!(decided.contains(&format!("allowed {host}")), "{decided:?}");
    }
    let page = house.api.text("/metrics").await;
    assert!(page.contains("orchestra_egress_decisions_total"), "{page}");
    house.nothing_left().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_task_asks_within_the_ceiling_and_an_empty_list_closes_the_way_out() {
    let turns =
        json!([bash(&format!("env | grep -ci _proxy; {}", ask("a.wide.example:443"))), bash("echo x > x.txt"), done()]);
    let config = "[egress]\nallow = [\"registry.example\"]\npermit = [\"*.wide.example\"]\n\
                  [teams.closed.egress]\nallow = []\npermit = []\n";
    let house = Setup::new(script(turns)).config(config).open().await;
    let mut payload = house.payload();
    for (team, egress, pointer) in [
        ("web", json!(["evil.example"]), "/egress/0"),
        ("web", json!(["registry.example", "*.registry.example"]), "/egress/1"),
        ("web", json!(["package-registries"]), "/egress/0"),
        ("closed", json!(["registry.example"]), "/egress/0"),
    ] {
        payload["team"] = json!(team);
        payload["egress"] = egress;
        let (status, answer) = house.api.post("/v1/tasks", &payload).await;
        assert_eq!((status, &answer["errors"][0]["pointer"]), (422, &json!(pointer)), "{payload}: {answer}");
    }
    let narrow = house.submit(json!({ "egress": ["b.wide.example:443", "B.wide.example:443"] })).await;
    let none = house.submit(json!({ "egress": [] })).await;
    assert_eq!(house.task(&narrow).await["egress"], json!(["b.wide.example:443"]));
    assert_eq!(house.task(&none).await["egress"], json!([]));
    for (id, expected, decided) in [
        (narrow, "(not-allowed)", vec!["refused a.wide.example:443 not-allowed".to_owned()]),
        (none, "nobody", Vec::new()),
    ] {
        assert_eq!(house.ended(&id).await["status"], "succeeded");
        let events = house.events(&id).await;
        let said = outputs(&events);
        assert!(said[0].contains(expected), "{said:?}");
        assert_eq!(said[0].starts_with('0'), decided.is_empty(), "{said:?}");
        assert_eq!(decisions(&events), decided);
    }
    house.nothing_left().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_program_has_the_way_out_beside_its_model() {
    let turns = json!([done()]);
    let program = r#"
import json, os, urllib.error, urllib.request
body = {"model": "claude-sonnet-4-6", "max_tokens": 100, "messages": [{"role": "user", "content": os.environ["ORCHESTRA_TASK"]}]}
request = urllib.request.Request(os.environ["ANTHROPIC_BASE_URL"] + "/v1/messages", json.dumps(body).encode(),
    {"content-type": "application/json", "anthropic-version": "2023-06-01", "x-api-key": "none"})
print("model", urllib.request.urlopen(request, timeout=60).status)
try:
    urllib.request.urlopen("https://evil.example/", timeout=60)
except OSError as error:
    print("way out", error)
open("answers.txt", "w").write("done")
"#;
    let house = Setup::new(script(turns)).config("[egress]\nallow = [\"registry.example\"]\n").open().await;
    let command = json!(["python3", "-c", program]);
    let id = house.submit(json!({ "harness": "command", "command": command })).await;
    let task = house.ended(&id).await;
    let events = house.events(&id).await;
    assert_eq!(task["status"], "succeeded", "{task:#}\n{events:#?}");
    assert_eq!(decisions(&events), ["refused evil.example:443 not-allowed"]);
    house.nothing_left().await;
}
