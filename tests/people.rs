//! People sign in through their company's identity provider: groups decide what they may do, a restart signs nobody out, a
//! group that was taken away is gone at the next sign-in, and whoever was signed out is out at once, open pages included.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use orchestra_test_forges::identity::{CLIENT_ID, CLIENT_SECRET, IdentityFault, IdentityServer};
use reqwest::{Client, Method, Response, Url, redirect};
use serde_json::{Value, json};

use crate::harness::{House, Setup, bash, done, script};

/// A browser, as far as a sign-in needs one: it keeps cookies by host, and follows no redirect by itself.
struct Browser {
    client: Client,
    cookies: BTreeMap<String, String>,
    base: String,
}

impl Browser {
    fn new(house: &House) -> Self {
        let client = Client::builder().redirect(redirect::Policy::none()).pool_max_idle_per_host(0).build().unwrap();
        Self { client, cookies: BTreeMap::new(), base: house.api.base.clone() }
    }

    fn request(&self, method: Method, path: &str) -> reqwest::RequestBuilder {
        let cookies: Vec<_> = self.cookies.iter().map(|(name, value)| format!("{name}={value}")).collect();
        let request = self.client.request(method, format!("{}{path}", self.base)).header("cookie", cookies.join("; "));
        request.header("sec-fetch-site", "same-origin")
    }

    /// A form with one field, whose value needs no encoding.
    fn form(&self, path: &str, name: &str, value: &str) -> reqwest::RequestBuilder {
        let request = self.request(Method::POST, path).header("content-type", "application/x-www-form-urlencoded");
        request.body(format!("{name}={value}"))
    }

    async fn send(&mut self, request: reqwest::RequestBuilder) -> Response {
        let answer = request.send().await.unwrap();
        for line in answer.headers().get_all("set-cookie") {
            let pair = line.to_str().unwrap().split(';').next().unwrap();
            let (name, value) = pair.split_once('=').unwrap();
            match value {
                "" => drop(self.cookies.remove(name)),
                value => drop(self.cookies.insert(name.to_owned(), value.to_owned())),
            }
        }
        answer
    }

    async fn get(&mut self, path: &str) -> Response {
        self.send(self.request(Method::GET, path)).await
    }

    async fn status(&mut self, path: &str) -> u16 {
        self.get(path).await.status().as_u16()
    }

    /// To the provider, through it, and back.
    async fn sign_in(&mut self) -> Response {
        let to = location(&self.get("/sign-in/oidc?next=/tasks").await);
        let back = location(&self.client.get(&to).send().await.unwrap());
        let back = Url::parse(&back).unwrap();
        self.get(&format!("{}?{}", back.path(), back.query().unwrap())).await
    }

    /// What a page's forms carry.
    async fn token(&mut self) -> String {
        let page = self.get("/tasks").await.text().await.unwrap();
        page.split("name=\"csrf\" value=\"").nth(1).unwrap().split('"').next().unwrap().to_owned()
    }

    async fn submit(&mut self, house: &House) -> (u16, Value) {
        let request = self.request(Method::POST, "/v1/tasks").json(&house.payload());
        let answer = self.send(request).await;
        (answer.status().as_u16(), answer.json().await.unwrap())
    }
}

fn location(answer: &Response) -> String {
    assert!(answer.status().is_redirection(), "{}", answer.status());
    answer.headers()["location"].to_str().unwrap().to_owned()
}

const SECRET: &str = "SECRET_OF_THE_PROVIDER";

fn secret() -> Vec<(String, String)> {
    vec![(SECRET.to_owned(), CLIENT_SECRET.to_owned())]
}

async fn open(provider: &IdentityServer) -> House {
    let config = format!(
        "[oidc]\nissuer = \"{}\"\nclient_id = \"{CLIENT_ID}\"\nclient_secret_env = \"{SECRET}\"\nlabel = \"Acme\"\n\
         [[oidc.map]]\ngroup = \"infra\"\nteam = \"platform\"\nrole = \"operator\"\n\
         [[oidc.map]]\ngroup = \"readers\"\nteam = \"platform\"\nrole = \"viewer\"\n",
        provider.issuer()
    );
    Setup::new(script(json!([bash("echo one >> log.txt"), done()])))
        .config(&config)
        .environment(SECRET, CLIENT_SECRET)
        .open()
        .await
}

/// The kinds and data of the sessions' events, from the operator's view of the log.
async fn log(house: &House, until: &str) -> Vec<(String, Value)> {
    let mut frames = house.api.follow("/v1/events", None).await;
    let mut seen = Vec::new();
    loop {
        let frame = frames.next().await.expect("the event comes");
        let stream = frame.data["stream"].as_str().unwrap_or_default();
        if stream.starts_with("session-") {
            seen.push((frame.kind.clone(), frame.data["data"].clone()));
        }
        if frame.kind == until {
            return seen;
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn groups_decide_a_restart_keeps_and_signing_out_ends() {
    let provider = IdentityServer::start().await;
    let mut house = open(&provider).await;
    provider.directory().groups = vec!["readers".to_owned(), "others".to_owned()];
    let mut viewer = Browser::new(&house);
    assert_eq!(viewer.status("/tasks").await, 303, "nobody is signed in");
    assert_eq!(viewer.sign_in().await.status(), 200);
    assert_eq!(viewer.status("/tasks").await, 200);
    assert_eq!(viewer.submit(&house).await.0, 403, "a viewer reads");
    provider.directory().groups = vec!["infra".to_owned()];
    provider.directory().subject = "5f0c-bob".to_owned();
    let mut operator = Browser::new(&house);
    assert_eq!(operator.sign_in().await.status(), 200);
    let (status, task) = operator.submit(&house).await;
    assert_eq!(status, 202, "{task}");
    let id = task["id"].as_str().unwrap().to_owned();
    assert_eq!(house.ended(&id).await["status"], "succeeded");

    // `kill -9`: both are still signed in, with the same rights.
    house.kill().await;
    house.restart_with(&secret()).await;
    assert_eq!(viewer.status(&format!("/tasks/{id}")).await, 200);
    assert_eq!(viewer.submit(&house).await.0, 403);
    assert_eq!(operator.submit(&house).await.0, 202);

    // Signed out is out, and stays out.
    let token = operator.token().await;
    let before = operator.cookies.clone();
    let form = operator.form("/sign-out", "csrf", &token);
    assert_eq!(operator.send(form).await.status(), 303);
    operator.cookies = before;
    assert_eq!(operator.status("/tasks").await, 303, "a cookie that was kept is worth nothing");
    house.kill().await;
    house.restart_with(&secret()).await;
    assert_eq!(operator.status("/tasks").await, 303, "after a restart too");
    assert_eq!(viewer.status("/tasks").await, 200);

    // A group that was taken away is gone at the next sign-in.
    provider.directory().groups = vec!["others".to_owned()];
    operator.cookies.clear();
    assert_eq!(operator.sign_in().await.status(), 403);
    assert!(operator.cookies.keys().all(|name| name != "orchestra_session"));

    let seen = log(&house, "sign-in-refused").await;
    let kinds: Vec<_> = seen.iter().map(|(kind, _)| kind.as_str()).collect();
    assert_eq!(kinds, ["session-started", "session-started", "session-ended", "sign-in-refused"]);
    assert_eq!(seen[3].1["reason"], "no-membership");
    assert_eq!(seen[3].1["holder"]["subject"], "5f0c-bob");
    let all = format!("{seen:?}");
    assert!(!all.contains(CLIENT_SECRET) && !all.contains(&viewer.cookies["orchestra_session"]));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nobody_gets_in_on_a_lie() {
    use IdentityFault as F;
    let provider = IdentityServer::start().await;
    let house = open(&provider).await;
    provider.directory().groups = vec!["infra".to_owned()];
    let faults =
        [F::Issuer, F::Audience, F::Nonce, F::Expired, F::NotSigned, F::PublicAsSecret, F::OtherKey, F::NoToken];
    for fault in faults {
        provider.directory().fault = Some(fault);
        let mut browser = Browser::new(&house);
        let answer = browser.sign_in().await;
        assert!(matches!(answer.status().as_u16(), 401 | 500), "{fault:?}: {}", answer.status());
        assert!(!browser.cookies.contains_key("orchestra_session"), "{fault:?}");
    }
    provider.directory().fault = None;
    // An answer that was meant for another browser.
    let (mut one, mut other) = (Browser::new(&house), Browser::new(&house));
    let to = location(&one.get("/sign-in/oidc?next=/tasks").await);
    location(&other.get("/sign-in/oidc?next=/tasks").await);
    let back = Url::parse(&location(&one.client.get(&to).send().await.unwrap())).unwrap();
    let path = format!("{}?{}", back.path(), back.query().unwrap());
    assert_eq!(other.status(&path).await, 401);
    assert_eq!(one.status(&path).await, 200, "it still counts where it belongs");
    // And counts once: even in the same browser, with its cookie back.
    let mut again = Browser::new(&house);
    let to = location(&again.get("/sign-in/oidc?next=/tasks").await);
    let cookies = again.cookies.clone();
    let back = Url::parse(&location(&again.client.get(&to).send().await.unwrap())).unwrap();
    let path = format!("{}?{}", back.path(), back.query().unwrap());
    assert_eq!(again.status(&path).await, 200);
    again.cookies = cookies;
    assert_eq!(again.status(&path).await, 401);
    // Without the provider, those who are in stay in, and keys open the door as before.
    drop(provider);
    assert_eq!(one.status("/tasks").await, 200);
    let to = Url::parse(&location(&other.get("/sign-in/oidc").await)).unwrap();
    let state = to.query_pairs().find(|(name, _)| name == "state").unwrap().1.into_owned();
    assert_eq!(
        other.status(&format!("/sign-in/oidc/return?code=x&state={state}&iss=x")).await,
        401,
        "another's answer"
    );
    let form = other.form("/sign-in", "key", house.api.key());
    assert_eq!(other.send(form).await.status(), 303);
    assert_eq!(other.status("/tasks").await, 200);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_open_page_notices_within_a_second_that_its_reader_was_sent_away() {
    let provider = IdentityServer::start().await;
    let house = open(&provider).await;
    provider.directory().groups = vec!["infra".to_owned()];
    let mut person = Browser::new(&house);
    assert_eq!(person.sign_in().await.status(), 200);
    let mut boss = Browser::new(&house);
    let form = boss.form("/sign-in", "key", house.api.key());
    assert_eq!(boss.send(form).await.status(), 303);
    for path in ["/live/tasks", "/v1/events"] {
        if !person.cookies.contains_key("orchestra_session") {
            assert_eq!(person.sign_in().await.status(), 200);
        }
        let mut stream = person.request(Method::GET, path).header("accept", "text/event-stream").send().await.unwrap();
        assert_eq!(stream.status(), 200, "{path}");
        stream.chunk().await.unwrap().expect("a sign of life");
        let token = boss.token().await;
        let page = boss.get("/people").await.text().await.unwrap();
        let panel = page.split("<section").find(|panel| panel.contains("Ada Lovelace")).expect("they are on the page");
        let end = panel.split("action=\"").nth(1).unwrap().split('"').next().unwrap().to_owned();
        let form = boss.form(&end, "csrf", &token);
        let began = Instant::now();
        assert_eq!(boss.send(form).await.status(), 303);
        let rest = async { while let Ok(Some(_)) = stream.chunk().await {} };
        tokio::time::timeout(Duration::from_secs(5), rest).await.expect("the stream ends");
        let took = began.elapsed();
        println!("{path}: cut {took:?} after the form was sent");
        assert!(took < Duration::from_secs(1), "{path}: {took:?}");
        assert_eq!(person.status("/tasks").await, 303);
        person.cookies.clear();
    }
}
