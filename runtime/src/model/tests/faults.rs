//! Every fault that a provider, or the way to it, can have.

use super::*;

#[tokio::test]
async fn every_refusal_has_its_class() {
    let late = "Retry-After: 7\r\n";
    for (status, headers, body, class, code, wait) in [
        ("429 Too Many Requests", late, "{}", FaultClass::RateLimited, FailureCode::ModelRateLimited, Some(7)),
        (
            "429 Too Many Requests",
            "",
            r#"{"error":{"code":"insufficient_quota"}}"#,
            FaultClass::SpendLimit,
            FailureCode::ModelRateLimited,
            None,
        ),
        ("529 Overloaded", "", "{}", FaultClass::Overloaded, FailureCode::ModelOverloaded, None),
        ("500 Oops", late, "<html>", FaultClass::ServerError, FailureCode::ModelUnavailable, Some(7)),
        (
            "401 Unauthorized",
            "",
            r#"{"error":{"message":"bad key canary-7c1e9d"}}"#,
            FaultClass::Auth,
            FailureCode::ModelAuth,
            None,
        ),
        ("400 Bad Request", "", "", FaultClass::Rejected, FailureCode::ModelUnavailable, None),
        (
            "307 Moved",
            "Location: http://127.0.0.1:1/\r\n",
            "",
            FaultClass::Rejected,
            FailureCode::ModelUnavailable,
            None,
        ),
    ] {
        for model in [CLAUDE, GPT] {
            let failure = fails(model, Answer::status(status, headers, body)).await;
            assert_eq!((failure.class, failure.failure.code), (class, code), "{status}");
            assert_eq!(failure.retry_after, wait.map(Duration::from_secs), "{status}");
            assert_eq!(failure.charged, Charge::Nothing, "{status}");
        }
    }
}

#[tokio::test]
async fn a_broken_reply_is_named_and_its_cost_bounded() {
    let claude = claude_events();
    let half = events(&claude[..8]);
    // It was thinking, and may have thought more than it showed: up to the limit of the call.
    let seen = Usage { output_tokens: 4_096, ..claude_reply().usage };
    for (what, then, class, code) in [
        ("cut", Then::Close, FaultClass::Truncated, FailureCode::ModelTruncated),
        ("silent", Then::Hang, FaultClass::IdleTimeout, FailureCode::ModelTimeout),
    ] {
        let failure = fails(CLAUDE, Answer::stream(&half).then(then)).await;
        assert_eq!((failure.class, failure.failure.code), (class, code), "{what}");
        assert_eq!(failure.charged, Charge::Usage(seen), "{what}");
        let failure = fails(GPT, Answer::stream(&gpt_stream(&gpt_chunks()[..4], "")).then(then)).await;
        assert_eq!((failure.class, failure.charged), (class, Charge::Unknown), "{what}");
    }
    // All but the closing event: the count is exact, the reply is not believed.
    let failure = fails(CLAUDE, Answer::stream(&events(&claude[..claude.len() - 1]))).await;
    assert_eq!((failure.class, failure.charged), (FaultClass::Truncated, Charge::Usage(claude_reply().usage)));
    let failure = fails(GPT, Answer::stream(&gpt_stream(&gpt_chunks()[..3], "data: [DONE]\n\n"))).await;
    assert_eq!(failure.class, FaultClass::Truncated, "the end without a reason to end");
    // A length that is not reached is a broken connection, not an end.
    let mut broken = Answer::stream(&half);
    broken.bytes = String::from_utf8(broken.bytes)
        .expect("UTF-8")
        .replace("Connection: close", "Content-Length: 99999")
        .into_bytes();
    let failure = fails(CLAUDE, broken).await;
    assert_eq!((failure.class, failure.failure.code), (FaultClass::Reset, FailureCode::NetworkDropped));
    assert_eq!(failure.charged, Charge::Usage(seen));
    let failure = fails(CLAUDE, Answer::raw("").then(Then::Reset)).await;
    assert_eq!((failure.class, failure.charged), (FaultClass::Reset, Charge::Nothing), "not one byte came");
    let failure = fails(CLAUDE, Answer::raw("").then(Then::Hang)).await;
    assert_eq!((failure.class, failure.charged), (FaultClass::FirstByteTimeout, Charge::Nothing), "not one byte came");
    let failure = fails(GPT, Answer::stream("").then(Then::Hang)).await;
    assert_eq!((failure.class, failure.failure.code), (FaultClass::FirstByteTimeout, FailureCode::ModelTimeout));
    assert_eq!(failure.charged, Charge::Unknown, "it had begun to answer");
}

#[tokio::test]
async fn an_error_inside_a_stream_has_its_class() {
    let error = json!({ "type": "error", "error": { "type": "overloaded_error", "message": "canary-7c1e9d busy" } });
    let failure = fails(CLAUDE, Answer::stream(&events(std::slice::from_ref(&error)))).await;
    assert_eq!((failure.class, failure.charged), (FaultClass::Overloaded, Charge::Nothing));
    assert!(failure.failure.message.ends_with("[key] busy"), "{}", failure.failure.message);
    let failure = fails(CLAUDE, Answer::stream(&events(&[claude_start(), error]))).await;
    assert_eq!(failure.class, FaultClass::Overloaded);
    assert!(matches!(failure.charged, Charge::Usage(usage) if usage.input_tokens == 11));
    let error = json!({ "error": { "message": "slow down", "code": "rate_limit_exceeded" } });
    let failure = fails(GPT, Answer::stream(&gpt_stream(std::slice::from_ref(&error), ""))).await;
    assert_eq!((failure.class, failure.charged), (FaultClass::RateLimited, Charge::Nothing));
    let failure = fails(GPT, Answer::status("200 OK", "", &error.to_string())).await;
    assert_eq!((failure.class, failure.charged), (FaultClass::RateLimited, Charge::Nothing));
}

#[tokio::test]
async fn nonsense_is_refused_and_never_believed() {
    let stop = json!({ "type": "message_stop" });
    let html = "HTTP/1.1 200 OK\r\nContent-Type: text/html\r\nContent-Length: 6\r\n\r\n<html>";
    for (what, model, answer) in [
        ("a login page", CLAUDE, Answer::raw(html)),
        ("a login page", GPT, Answer::raw(html)),
        ("no JSON", CLAUDE, Answer::stream("data: {\n\n")),
        ("no JSON", GPT, Answer::stream("data: <>\n\n")),
        ("no fields", GPT, Answer::stream("data: {}\n\n")),
        ("wrong types", CLAUDE, Answer::stream("data: {\"type\":\"message_start\",\"message\":7}\n\n")),
        ("wrong types", GPT, Answer::stream("data: {\"choices\":{\"a\":1}}\n\n")),
        ("a negative count", GPT, Answer::stream("data: {\"choices\":[],\"usage\":{\"prompt_tokens\":-1}}\n\n")),
        ("no start", CLAUDE, Answer::stream(&events(std::slice::from_ref(&stop)))),
        ("two starts", CLAUDE, Answer::stream(&events(&[claude_start(), claude_start()]))),
        ("deep nesting", GPT, Answer::stream(&format!("data: {}\n\n", "[".repeat(100_000)))),
        (
            "a tool stop without a tool",
            GPT,
            Answer::stream(&gpt_stream(&[chunk(json!({}), Some("tool_calls")), gpt_usage()], "data: [DONE]\n\n")),
        ),
        ("a second answer", GPT, Answer::stream("data: {\"choices\":[{\"index\":1,\"delta\":{}}]}\n\n")),
        (
            "a part out of nowhere",
            CLAUDE,
            Answer::stream(&events(&[
                claude_start(),
                json!({ "type": "content_block_delta", "index": 3, "delta": { "type": "text_delta", "text": "x" } }),
            ])),
        ),
        ("a line of 100 MB", CLAUDE, Answer::stream(&format!("data: {}", "x".repeat(100_000_000)))),
    ] {
        let failure = fails(model, answer).await;
        assert_eq!(failure.class, FaultClass::Malformed, "{what}: {failure:?}");
    }
    let failure = fails(CLAUDE, Answer::raw("SSH-2.0-OpenSSH_9.9\r\n")).await;
    assert_eq!(failure.class, FaultClass::Reset, "not HTTP at all");
    let not_utf8 = [Answer::stream("").bytes, b"data: {\"type\":\"ping\xff\"}\n\n".to_vec()].concat();
    assert_eq!(fails(CLAUDE, Answer::raw(not_utf8)).await.class, FaultClass::Malformed);
}

#[tokio::test]
async fn a_call_that_cannot_be_made_costs_nothing() {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("loopback");
    let url = format!("http://{}", listener.local_addr().expect("address"));
    drop(listener);
    let models = models(&url);
    let request = request(&models, CLAUDE);
    let key = SecretString::from(KEY);
    let call = |key| models.call(&request, key, None, CancellationToken::new());
    let failure = call(Some(&key)).await.expect_err("nobody listens");
    assert_eq!((failure.class, failure.charged), (FaultClass::Connect, Charge::Nothing));
    let failure = call(None).await.expect_err("no key");
    assert_eq!((failure.class, failure.charged), (FaultClass::Auth, Charge::Nothing));
    let failure = call(Some(&SecretString::from("canary\n7c1e9d"))).await.expect_err("not a key");
    assert_eq!((failure.class, failure.charged), (FaultClass::Auth, Charge::Nothing));
    assert!(!format!("{failure:?} {models:?}").contains("canary"));
    // Plain HTTP where TLS is expected.
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("loopback");
    let url = format!("https://{}", listener.local_addr().expect("address"));
    let served = tokio::spawn(async move {
        let (mut socket, _) = listener.accept().await.expect("client");
        let _ = socket.read(&mut [0; 8192]).await;
        socket.write_all(b"HTTP/1.1 400 Bad Request\r\n\r\n").await.expect("client");
    });
    let models = super::models(&url);
    let failure = models.call(&request, Some(&key), None, CancellationToken::new()).await.expect_err("no TLS there");
    served.await.expect("server");
    assert_eq!(failure.class, FaultClass::Tls, "{failure:?}");
    assert_eq!(failure.charged, Charge::Nothing);
}

#[tokio::test]
async fn cancelling_ends_the_call_and_closes_the_connection() {
    let (url, served) = provider(Answer::stream(&events(&claude_events()[..8])).then(Then::Hang)).await;
    let models = models(&url);
    let (cancel, key) = (CancellationToken::new(), SecretString::from(KEY));
    let (sender, mut words) = mpsc::channel(8);
    let request = request(&models, CLAUDE);
    let call = models.call(&request, Some(&key), Some(sender), cancel.clone());
    let (outcome, ()) = tokio::join!(call, async {
        words.recv().await.expect("it speaks");
        cancel.cancel();
    });
    let failure = outcome.expect_err("cancelled");
    assert_eq!((failure.class, failure.failure.code), (FaultClass::Cancelled, FailureCode::Cancelled));
    assert!(matches!(failure.charged, Charge::Usage(usage) if usage.input_tokens == 11));
    tokio::time::timeout(Duration::from_secs(10), served).await.expect("the connection is closed").expect("server");
    let failure = models.call(&request, Some(&key), None, cancel).await.expect_err("cancelled before");
    assert_eq!(failure.charged, Charge::Nothing);
}
