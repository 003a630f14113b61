//! Callers that leave, wait, or are stopped.

use std::sync::Arc;
use std::time::Duration;

use orchestra_events::FailureCode;
use tokio::sync::Notify;

use super::super::Abandoned;
use super::house::*;

const HEAD: &str = "HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nConnection: close\r\n\r\n";

async fn soon<T>(what: &str, future: impl Future<Output = T>) -> T {
    tokio::time::timeout(Duration::from_secs(20), future).await.unwrap_or_else(|_| panic!("never: {what}"))
}

#[tokio::test]
async fn a_reply_is_read_to_its_end_when_its_caller_has_left() {
    for speaks in ALL {
        for stream in [true, false] {
            let go_on = Arc::<Notify>::default();
            let events = speaks.events();
            let act = Act::raw(format!("{HEAD}{}", events[..2].concat()))
                .then(Step::Wait(Arc::clone(&go_on)))
                .bytes(&events[2..].concat());
            let house = House::with(vec![act], speaks.plan()).await;
            let request = house.client.post(format!("{}{}", house.url, speaks.path())).body(speaks.request(stream));
            let call = tokio::spawn(async move {
                let mut response = request.send().await.expect("an answer");
                response.chunk().await.expect("a first event");
                std::future::pending::<()>().await;
            });
            soon("the request", house.provider.came.notified()).await;
            call.abort();
            let _ = call.await;
            go_on.notify_one();
            house.ledger.closed().await;
            house.ledger.check();
            let settled = house.ledger.settlements();
            assert_eq!(settled.len(), 1);
            assert!(settled[0].confirmed && settled[0].failure.is_none(), "{speaks:?}: {settled:?}");
            assert_eq!(house.ledger.spent(), speaks.cost(), "{speaks:?}, stream: {stream}");
            assert_eq!(house.asked().len(), 1);
        }
    }
}

#[tokio::test]
async fn by_policy_the_provider_is_left_at_once() {
    for speaks in ALL {
        let act = Act::open_stream(&speaks.events()[..2].concat()).then(Step::Hang);
        let mut plan = speaks.plan();
        plan.policy.abandoned = Abandoned::SettleAtBound;
        let house = House::with(vec![act], plan).await;
        let request = house.client.post(format!("{}{}", house.url, speaks.path())).body(speaks.request(true));
        let mut response = request.send().await.expect("an answer");
        response.chunk().await.expect("a first event");
        drop(response);
        soon("the connection is closed", house.provider.left.notified()).await;
        house.ledger.closed().await;
        house.ledger.check();
        let settled = house.ledger.settlements();
        assert!(!settled[0].confirmed);
        assert_eq!(settled[0].failure.as_ref().map(|failure| failure.code), Some(FailureCode::Cancelled));
        if speaks == Speaks::Messages {
            // The input was said; nothing of the output was seen.
            assert_eq!(house.ledger.spent(), 10 * 3_000 + 256 * 15_000);
        }
    }
}

#[tokio::test]
async fn nothing_is_tried_again_for_a_caller_that_has_left() {
    for stream in [true, false] {
        let house = House::new(vec![Act::status("500 Oops", "", "{}")]).await;
        house.clock.stand_still();
        let request = house.client.post(format!("{}/v1/messages", house.url)).body(Speaks::Messages.request(stream));
        let call = tokio::spawn(request.send());
        soon("the wait for another attempt", house.ledger.has(|entry| matches!(entry, Entry::Retried(..)))).await;
        call.abort();
        house.ledger.closed().await;
        house.ledger.check();
        assert_eq!((house.ledger.spent(), house.asked().len()), (0, 1), "stream: {stream}");
    }
}

#[tokio::test]
async fn who_waits_hears_that_somebody_is_there() {
    for speaks in ALL {
        let (first, middle) = (Arc::<Notify>::default(), Arc::<Notify>::default());
        let events = speaks.events();
        // The second silence is in the middle of an event.
        let (half, other_half) = events[3].split_at(8);
        let act = Act { steps: vec![Step::Wait(Arc::clone(&first))], piece: usize::MAX }
            .bytes(&format!("{HEAD}{}{half}", events[..3].concat()))
            .then(Step::Wait(Arc::clone(&middle)))
            .bytes(&format!("{other_half}{}", events[4..].concat()));
        let mut plan = speaks.plan();
        plan.policy.keep_alive = Duration::from_millis(30);
        let house = House::with(vec![act], plan).await;
        let request = house.client.post(format!("{}{}", house.url, speaks.path())).body(speaks.request(true));
        let (start, marker) = (events[..3].concat(), if speaks == Speaks::Messages { "ping" } else { "keepalive" });
        let got = house
            .send_and_see(request, |body| {
                let text = String::from_utf8_lossy(body);
                if text.contains(marker) {
                    first.notify_one();
                }
                if text.split_once(&start).is_some_and(|(_, after)| after.contains(marker)) {
                    middle.notify_one();
                }
            })
            .await;
        assert_eq!((got.status, got.clean), (200, true), "{speaks:?}");
        let text = got.text();
        let alive = match speaks {
            Speaks::Messages => "event: ping\ndata: {\"type\": \"ping\"}\n\n",
            Speaks::Chat => {
                "data: {\"id\":\"keepalive\",\"object\":\"chat.completion.chunk\",\"created\":0,\"model\":\"\",\"choices\":[]}\n\n"
            }
            Speaks::Responses => "data: {\"type\":\"keepalive\"}\n\n",
        };
        assert!(text.starts_with(alive), "{speaks:?}: {text}");
        let mut expected = events.clone();
        if speaks == Speaks::Chat {
            expected.remove(4);
        }
        assert_eq!(text.replace(alive, ""), expected.concat(), "{speaks:?}: between whole events only");
        house.ledger.closed().await;
        assert_eq!(house.ledger.spent(), speaks.cost(), "{speaks:?}");
    }
}

#[tokio::test]
async fn a_refusal_after_a_keep_alive_is_an_event_and_no_clean_end() {
    for speaks in ALL {
        let go_on = Arc::<Notify>::default();
        let act = Act { steps: vec![Step::Wait(Arc::clone(&go_on))], piece: usize::MAX }
            .bytes("HTTP/1.1 400 Bad\r\nContent-Length: 0\r\nConnection: close\r\n\r\n");
        let mut plan = speaks.plan();
        plan.policy.keep_alive = Duration::from_millis(30);
        let house = House::with(vec![act], plan).await;
        let request = house.client.post(format!("{}{}", house.url, speaks.path())).body(speaks.request(true));
        let got = house.send_and_see(request, |_| go_on.notify_one()).await;
        assert_eq!((got.status, got.clean), (200, false), "{speaks:?}");
        assert!(got.text().contains("refused the request (HTTP 400)"), "{speaks:?}: {}", got.text());
        house.ledger.closed().await;
        assert_eq!(house.ledger.spent(), 0);
    }
}

#[tokio::test]
async fn stopping_the_service_settles_what_is_under_way_first() {
    for (what, act, expected) in [
        (
            "begun",
            Act::open_stream(&Speaks::Messages.events()[..3].concat()).then(Step::Hang),
            Some(30_000 + 264 * 15_000),
        ),
        // It was sent, and may be worked on: nobody can know.
        ("sent", Act::raw("").then(Step::Hang), None),
    ] {
        let mut house = House::new(vec![act]).await;
        let request = house.client.post(format!("{}/v1/messages", house.url)).body(Speaks::Messages.request(true));
        let call = tokio::spawn(async move {
            let mut response = request.send().await.expect("an answer");
            let mut clean = response.status() != 200;
            while let Ok(chunk) = response.chunk().await {
                clean = chunk.is_none();
                if clean {
                    break;
                }
            }
            (response.status().as_u16(), clean)
        });
        soon("the request", house.provider.came.notified()).await;
        if what == "begun" {
            // Trimmed: the first event is read.
            soon("the first event", house.ledger.has(|entry| matches!(entry, Entry::Trimmed(..)))).await;
        }
        house.stop.cancel();
        soon("the service ends", house.served.take().expect("served")).await.expect("no panic");
        house.ledger.check();
        let settled = house.ledger.settlements();
        assert_eq!(settled.len(), 1, "{what}: {:?}", house.ledger.entries());
        assert_eq!(settled[0].failure.as_ref().map(|failure| failure.code), Some(FailureCode::Cancelled), "{what}");
        if let Some(expected) = expected {
            assert_eq!(house.ledger.spent(), expected, "{what}");
        } else {
            let Entry::Reserved(_, reservation) = &house.ledger.entries()[0] else { panic!("reserved first") };
            assert_eq!(settled[0].cost, reservation.nano_usd, "{what}");
        }
        let (status, clean) = soon("the caller's end", call).await.expect("no panic");
        assert!(status == 200 && !clean || status == 503, "{what}: {status} {clean}");
    }
}

#[tokio::test]
async fn the_tasks_deadline_ends_a_call() {
    let act = Act::open_stream(&Speaks::Messages.events()[..2].concat()).then(Step::Hang);
    let deadline = NOW.parse::<jiff::Timestamp>().expect("time") + jiff::SignedDuration::from_millis(300);
    let house = House::with(vec![act], Plan { deadline: Some(deadline), ..Plan::default() }).await;
    let got = house.post("/v1/messages", Speaks::Messages.request(true)).await;
    assert_eq!((got.status, got.clean), (200, false));
    house.ledger.closed().await;
    let settled = house.ledger.settlements();
    assert_eq!(settled[0].failure.as_ref().map(|failure| failure.code), Some(FailureCode::SandboxTimeout));
}

#[tokio::test]
async fn many_callers_stay_under_one_cap() {
    // Enough for some of them at a time.
    let cap = orchestra_events::NanoUsd::from_nanos(200_000_000);
    let house =
        House::with(vec![Act::stream(&Speaks::Messages.whole())], Plan { cap: Some(cap), ..Plan::default() }).await;
    let calls = (0..64).map(|_| house.post("/v1/messages", Speaks::Messages.request(true)));
    let answers = futures_util::future::join_all(calls).await;
    house.ledger.closed().await;
    house.ledger.check();
    let served = answers.iter().filter(|got| got.status == 200).count();
    assert!(answers.iter().all(|got| matches!(got.status, 200 | 402)));
    assert!(served > 0);
    assert_eq!(house.asked().len(), served, "who was refused was not sent");
    assert_eq!(house.ledger.spent(), served as i64 * Speaks::Messages.cost());
    assert!(house.ledger.spent() <= cap.nanos());
}
