"""What a request is made of and what its answer means: all that the blocking and the asynchronous client share.

Nothing here does anything: a `Call` is described, an answer is judged, a stream's bytes are read into frames.
"""

from __future__ import annotations

import dataclasses
import datetime
import email.utils
import json
import random
import uuid
from collections.abc import Iterator, Mapping
from typing import Any
from urllib.parse import quote

import httpx

from .errors import ConnectionFailed, OrchestraError

FIRST_WAIT = 0.25
"""The first wait, in seconds; it doubles."""
LONGEST_WAIT = 60.0
"""The longest wait, in seconds, whatever the server asks for."""
LONGEST_BACKOFF = 8.0
"""Where doubling ends, in seconds."""
PASSING = frozenset({429, 502, 503, 504})
"""Statuses after which the same request may go well."""
SILENCE = 45.0
"""Longest silence, in seconds, before a stream counts as dead: the server speaks every 15 seconds."""
LONGEST_LINE = 8 * 1024 * 1024
"""Most characters of one line of a stream: an event has at most a mebibyte of data."""
ENDS = frozenset({"succeeded", "failed", "cancelled"})
"""Events after which a task has come to its end, for this time."""


@dataclasses.dataclass(frozen=True)
class Call:
    """A request."""

    method: str
    path: str
    query: Mapping[str, Any] | None = None
    body: Any = None
    accept: str = "application/json"
    idempotency_key: str | None = None

    def named(self) -> Call:
        """Every POST has a name, so that an attempt whose answer was lost may be repeated."""
        if self.method != "POST" or self.idempotency_key is not None:
            return self
        return dataclasses.replace(self, idempotency_key=str(uuid.uuid4()))

    def headers(self, key: str, after: int | None = None) -> dict[str, str]:
        headers = {"accept": self.accept, "authorization": f"Bearer {key}"}
        if self.idempotency_key is not None:
            headers["idempotency-key"] = self.idempotency_key
        if self.body is not None:
            headers["content-type"] = "application/json"
        if after is not None:
            headers["last-event-id"] = str(after)
        return headers

    def content(self) -> bytes | None:
        return None if self.body is None else json.dumps(self.body).encode()

    def parameters(self) -> dict[str, str]:
        return {name: str(value) for name, value in (self.query or {}).items() if value is not None}


def part(text: str) -> str:
    """A text as one segment of a path."""
    return quote(text, safe="")


def scope_path(scope: str) -> str:
    """A scope in a path; it has slashes of its own."""
    return quote(scope, safe="/:")


def wait(attempt: int, retry_after: str | None, chance: float | None = None) -> float:
    """Seconds before the next attempt: what the server says, else a random part of a growing span."""
    chance = random.random() if chance is None else chance
    if retry_after:
        try:
            if retry_after.strip().isdigit():
                seconds = float(retry_after)
            else:
                until = email.utils.parsedate_to_datetime(retry_after)
                seconds = (until - datetime.datetime.now(datetime.timezone.utc)).total_seconds()
            # A little later than asked for, and not all callers at once.
            return min(max(seconds, 0.0) + chance * FIRST_WAIT, LONGEST_WAIT)
        except (TypeError, ValueError):
            pass
    backoff: float = min(FIRST_WAIT * 2**attempt, LONGEST_BACKOFF)
    return (0.5 + chance / 2) * backoff


def problem(status: int, text: str) -> OrchestraError:
    """The error in an answer that is none of the good ones."""
    try:
        body = json.loads(text)
    except ValueError:
        body = None
    if isinstance(body, dict) and "code" in body:
        return OrchestraError(status, body)
    # Something before the server has answered.
    return OrchestraError(status, {"detail": text[:200]})


def passes(error: Exception) -> bool:
    """Whether trying the same again may help."""
    if isinstance(error, OrchestraError):
        return error.status in PASSING or error.code == "request-in-progress"
    return isinstance(error, (httpx.TransportError, ConnectionFailed))


def stream_passes(error: Exception) -> bool:
    """The same for a stream, of which nothing is done twice."""
    return passes(error) or isinstance(error, OrchestraError) and error.status >= 500


@dataclasses.dataclass(frozen=True)
class Frame:
    """A frame of a stream of server-sent events."""

    id: str | None
    event: str
    data: str


class Frames:
    """Puts lines together into frames. A frame that was cut off in the middle is none."""

    def __init__(self) -> None:
        self._buffer = ""
        self._id: str | None = None
        self._event = "message"
        self._data: list[str] = []

    def feed(self, text: str) -> Iterator[Frame]:
        self._buffer += text
        if len(self._buffer) > LONGEST_LINE:
            raise ConnectionFailed("a line of the stream has no end")
        # A carriage return at the end may be half of a line break.
        held = "\r" if self._buffer.endswith("\r") else ""
        lines = self._buffer.removesuffix("\r").replace("\r\n", "\n").replace("\r", "\n").split("\n")
        self._buffer = lines.pop() + held
        for line in lines:
            if line == "":
                if self._data:
                    yield Frame(self._id, self._event, "\n".join(self._data))
                self._id, self._event, self._data = None, "message", []
                continue
            if line.startswith(":"):
                continue
            name, _, value = line.partition(":")
            value = value.removeprefix(" ")
            if name == "data":
                self._data.append(value)
            elif name == "event":
                self._event = value
            elif name == "id":
                self._id = value


class Cursor:
    """How far a stream has been read, across its connections."""

    def __init__(self, after: int | None) -> None:
        self.last = after
        self.failures = 0

    def take(self, frame: Frame) -> Any:
        """What a frame says; `None` where it was said before."""
        data = json.loads(frame.data)
        if frame.id is None:
            return {"type": "delta", "text": data["text"]} if frame.event == "delta" else None
        position = int(frame.id)
        if self.last is not None and position <= self.last:
            return None
        self.failures = 0
        self.last = position
        return data

    def lost(self, path: str, retries: int, error: Exception) -> float:
        """Seconds until the next connection; raises where there should be none."""
        if not stream_passes(error):
            raise error
        self.failures += 1
        if self.failures > retries + 1:
            raise ConnectionFailed(f"{path}: the stream was lost {self.failures} times in a row") from error
        return wait(self.failures - 1, None)
