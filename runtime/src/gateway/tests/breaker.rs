//! One task finds out that a provider is down, and all profit.

use std::sync::Arc;
use std::time::Duration;

use super::house::*;

fn down() -> Vec<Act> {
    vec![Act::status("500 Oops", "", "{}"); 20]
}

#[tokio::test]
async fn what_one_task_found_out_holds_for_all_until_a_probe_succeeds() {
    let mut script = down();
    script.push(Act::stream(&Speaks::Messages.whole()));
    let house = House::new(script).await;
    for call in 1..=4 {
        assert_eq!(house.post("/v1/messages", Speaks::Messages.request(true)).await.status, 500, "call {call}");
    }
    assert_eq!(house.asked().len(), 20);
    house.clock.slept.lock().expect("slept").clear();
    // Another task of the same server.
    let ledger = Arc::<Ledger>::default();
    let (url, _served) = house.serve(Arc::clone(&ledger));
    let ask = || house.client.post(format!("{url}/v1/messages")).body(Speaks::Messages.request(true));
    assert_eq!(house.send(ask()).await.status, 200);
    assert_eq!(house.clock.waits(), [5_000], "it waited before it asked");
    assert_eq!(house.asked().len(), 21);
    assert_eq!(house.send(ask()).await.status, 200);
    assert_eq!(house.clock.waits(), [5_000], "nobody waits any more");
    // Other providers are not meant.
    ledger.closed().await;
    ledger.check();
    assert_eq!(ledger.spent(), 2 * Speaks::Messages.cost());
}

#[tokio::test]
async fn another_provider_is_not_left_alone() {
    let mut script = down();
    script.push(Act::stream(&Speaks::Chat.whole()));
    let house = House::new(script).await;
    for _ in 1..=4 {
        house.post("/v1/messages", Speaks::Messages.request(true)).await;
    }
    house.clock.slept.lock().expect("slept").clear();
    assert_eq!(house.post("/v1/chat/completions", Speaks::Chat.request(true)).await.status, 200);
    assert_eq!(house.clock.waits(), [0_u64; 0]);
}

#[tokio::test]
async fn who_waits_too_long_for_a_probe_is_told() {
    let mut script = down();
    script.push(Act::raw("").then(Step::Hang));
    let house = House::new(script).await;
    for _ in 1..=4 {
        house.post("/v1/messages", Speaks::Messages.request(true)).await;
    }
    while tokio::time::timeout(Duration::ZERO, house.provider.came.notified()).await.is_ok() {}
    let probe = house.client.post(format!("{}/v1/messages", house.url)).body(Speaks::Messages.request(true));
    let probe = tokio::spawn(probe.send());
    tokio::time::timeout(Duration::from_secs(20), house.provider.came.notified()).await.expect("the probe");
    for speaks in [Speaks::Messages] {
        let got = house.post(speaks.path(), speaks.request(true)).await;
        assert_eq!((got.status, got.header("retry-after")), (529, Some("1")), "{}", got.text());
        assert!(got.text().contains("left alone for now"), "{}", got.text());
    }
    assert_eq!(house.asked().len(), 21, "nobody asked but the probe");
    probe.abort();
}
