//! What comes back when nothing goes wrong.

use serde_json::json;

use super::house::*;

#[tokio::test]
async fn a_stream_passes_as_it_is_and_is_paid_for() {
    for speaks in ALL {
        let house = House::with(vec![Act::stream(&speaks.whole())], speaks.plan()).await;
        let got = house.post(speaks.path(), speaks.request(true)).await;
        assert_eq!((got.status, got.clean), (200, true), "{speaks:?}: {}", got.text());
        assert!(got.header("content-type").expect("a type").starts_with("text/event-stream"));
        let mut events = speaks.events();
        if speaks == Speaks::Chat {
            // The chunk with the usage, which this caller did not ask for.
            events.remove(4);
        }
        assert_eq!(got.text(), events.concat(), "{speaks:?}");
        house.ledger.closed().await;
        house.ledger.check();
        assert_eq!(house.ledger.spent(), speaks.cost(), "{speaks:?}");
        assert_eq!(house.asked().len(), 1);
    }
}

#[tokio::test]
async fn a_caller_that_wants_no_stream_gets_one_reply() {
    for speaks in ALL {
        for piece in [usize::MAX, 1] {
            let act = Act::stream(&speaks.whole()).in_pieces(piece);
            let house = House::with(vec![act], speaks.plan()).await;
            let got = house.post(speaks.path(), speaks.request(false)).await;
            assert_eq!((got.status, got.clean), (200, true), "{speaks:?}: {}", got.text());
            assert_eq!(got.header("content-type"), Some("application/json"));
            assert_eq!(speaks.words(&got.json()), "Grüezi 🏔");
            let expected = match speaks {
                Speaks::Messages => json!({ "input_tokens": 10, "output_tokens": 5 }),
                Speaks::Chat => json!({ "prompt_tokens": 10, "completion_tokens": 5, "total_tokens": 15 }),
                Speaks::Responses => json!({ "input_tokens": 10, "output_tokens": 5, "total_tokens": 15 }),
            };
            assert_eq!(got.json()["usage"], expected);
            house.ledger.closed().await;
            assert_eq!(house.ledger.spent(), speaks.cost(), "{speaks:?}");
            assert_eq!(house.asked()[0].json()["stream"], true, "the provider streams all the same");
        }
    }
}
