"""What a request does when it does not go at once, and reading streams: without a server."""

from __future__ import annotations

import httpx
import pytest

from orchestra_client import ConnectionFailed, Orchestra, OrchestraError
from orchestra_client._calls import Frame, Frames, wait


def problem(status: int, code: str, **headers: str) -> httpx.Response:
    body = {"type": f"/docs/errors/{code}", "title": "t", "status": status, "code": code, "detail": "d"}
    return httpx.Response(status, json=body, headers={name.replace("_", "-"): text for name, text in headers.items()})


class Answering:
    def __init__(self, *answers: httpx.Response | Exception) -> None:
        self.answers = list(answers)
        self.seen: list[httpx.Request] = []

    def __call__(self, request: httpx.Request) -> httpx.Response:
        answer = self.answers[min(len(self.seen), len(self.answers) - 1)]
        self.seen.append(request)
        if isinstance(answer, Exception):
            raise answer
        return answer

    def client(self) -> Orchestra:
        return Orchestra("http://test/", "orc_test", max_retries=3, http=httpx.Client(transport=httpx.MockTransport(self)))


BROKEN = httpx.ReadError("cut")
FINE = httpx.Response(202, json={"id": "task_1"})


def test_what_passes_is_tried_again_under_the_same_name() -> None:
    busy = problem(503, "overloaded", retry_after="0")
    server = Answering(BROKEN, busy, problem(409, "request-in-progress", retry_after="0"), FINE)
    assert server.client().tasks.cancel("task_1")["id"] == "task_1"
    assert len(server.seen) == 4
    assert len({request.headers["idempotency-key"] for request in server.seen}) == 1
    assert server.seen[0].headers["authorization"] == "Bearer orc_test"


def test_a_request_with_a_name_keeps_it() -> None:
    server = Answering(FINE)
    server.client().tasks.cancel("task_1", "why not", idempotency_key="mine")
    assert server.seen[0].headers["idempotency-key"] == "mine"


def test_what_is_refused_is_not_tried_again() -> None:
    server = Answering(problem(422, "invalid-request"))
    with pytest.raises(OrchestraError) as refused:
        server.client().tasks.get("task_1")
    assert (refused.value.status, refused.value.code, refused.value.detail) == (422, "invalid-request", "d")
    assert len(server.seen) == 1


def test_trying_again_has_an_end() -> None:
    server = Answering(BROKEN)
    with pytest.raises(ConnectionFailed):
        server.client().tasks.get("task_1")
    assert len(server.seen) == 4
    with pytest.raises(OrchestraError, match="lagging"):
        Answering(problem(503, "lagging", retry_after="0")).client().tasks.get("task_1")


def test_how_long_to_wait() -> None:
    assert wait(0, "3", 0.0) == 3.0
    assert wait(0, "3600", 1.0) == 60.0
    assert wait(0, "Thu, 01 Jan 1970 00:00:00 GMT", 0.0) == 0.0
    assert wait(0, "soon", 0.0) == 0.125
    assert [wait(attempt, None, 1.0) for attempt in (0, 1, 2, 10)] == [0.25, 0.5, 1.0, 8.0]


def test_an_answer_of_something_else_in_between_is_an_error_with_its_status() -> None:
    with pytest.raises(OrchestraError) as refused:
        Answering(httpx.Response(418, text="<html>")).client().tasks.get("task_1")
    assert (refused.value.status, refused.value.code, refused.value.detail) == (418, "unknown", "<html>")


def test_the_pieces_of_a_stream_do_not_matter() -> None:
    text = (
        ': connected\n\nid: 0\nevent: created\ndata: {"a":"é€😀"}\n\n: still here\n\n'
        "event: delta\r\ndata: one\r\ndata:two\r\n\r\nid: 7\rdata: x\r\rid: 8\nevent: cut\ndata: off"
    )
    whole = [Frame("0", "created", '{"a":"é€😀"}'), Frame(None, "delta", "one\ntwo"), Frame("7", "message", "x")]
    for size in range(1, 40):
        frames = Frames()
        found = [frame for at in range(0, len(text), size) for frame in frames.feed(text[at : at + size])]
        assert found == whole, f"in pieces of {size}"
