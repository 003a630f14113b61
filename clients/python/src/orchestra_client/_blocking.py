"""The client, blocking. Made by generate.py from _asynchronous.py: change that."""

from __future__ import annotations

import time
from collections.abc import Generator, Iterator, Callable, Mapping, Sequence
from types import TracebackType
from typing import Any, Generic, Literal, Self, TypedDict, TypeVar, Unpack, cast

import httpx

from . import _calls
from ._calls import Call
from .errors import ConnectionFailed, TaskFailed
from .models import (
    AuditEntry,
    AuditKey,
    Bill,
    BillingPeriod,
    BillingPeriods,
    BillingPlanRequest,
    BillingPlans,
    Budget,
    BudgetList,
    Campaign,
    CampaignRequest,
    CheckpointView,
    CredentialsRequest,
    Delivery,
    Event,
    IssuedKey,
    Key,
    KeyRequest,
    NewWebhook,
    WebhookReplayRequest,
    ScopeBudgetRequest,
    Task,
    TaskRequest,
    Usage,
    Webhook,
    WebhookChange,
    WebhookRequest,
    WebhookSecret,
)

T = TypeVar("T")
Dimension = Literal["team", "project", "environment", "taskType", "model", "customer", "day", "month"]


class Transport:
    """One request: with a time limit, tried again where that is safe and may help."""

    def __init__(self, base_url: str, api_key: str, max_retries: int, timeout: float, http: httpx.Client | None):
        self._base = base_url.rstrip("/")
        self._key = api_key
        self.retries = max_retries
        self._timeout = timeout
        self._http = http or httpx.Client(follow_redirects=False)

    def close(self) -> None:
        self._http.close()

    def send(self, call: Call) -> httpx.Response:
        """The answer, where it is a good one."""
        call = call.named()
        attempt = 0
        while True:
            retry_after = None
            try:
                response = self._http.request(
                    call.method,
                    self._base + call.path,
                    params=call.parameters(),
                    content=call.content(),
                    headers=call.headers(self._key),
                    timeout=self._timeout,
                )
                if response.is_success:
                    return response
                retry_after = response.headers.get("retry-after")
                raise _calls.problem(response.status_code, response.text)
            except Exception as error:
                if not _calls.passes(error):
                    raise
                if attempt >= self.retries:
                    if isinstance(error, httpx.TransportError):
                        tried = f"{call.method} {call.path}: no answer in {attempt + 1} attempts"
                        raise ConnectionFailed(tried) from error
                    raise
            time.sleep(_calls.wait(attempt, retry_after))
            attempt += 1

    def json(self, call: Call) -> Any:
        return (self.send(call)).json()

    def text(self, call: Call) -> str:
        return (self.send(call)).text

    def pieces(self, call: Call) -> Generator[bytes, None, None]:
        """A large answer, piece by piece. It is not tried again."""
        timeout = httpx.Timeout(self._timeout, read=_calls.SILENCE)
        with self._http.stream(
            call.method,
            self._base + call.path,
            params=call.parameters(),
            headers=call.headers(self._key),
            timeout=timeout,
        ) as response:
            if not response.is_success:
                response.read()
                raise _calls.problem(response.status_code, response.text)
            for piece in response.iter_bytes():
                yield piece

    def follow(self, call: Call, after: int | None) -> Generator[Event, None, None]:
        """Everything that a stream says, across connections, until the caller stops or the server refuses."""
        cursor = _calls.Cursor(after)
        timeout = httpx.Timeout(self._timeout, read=_calls.SILENCE)
        while True:
            failed: Exception
            try:
                headers = call.headers(self._key, cursor.last)
                with self._http.stream(
                    call.method, self._base + call.path, params=call.parameters(), headers=headers, timeout=timeout
                ) as response:
                    if not response.is_success:
                        response.read()
                        raise _calls.problem(response.status_code, response.text)
                    frames = _calls.Frames()
                    for text in response.iter_text():
                        for frame in frames.feed(text):
                            said = cursor.take(frame)
                            if said is not None:
                                yield cast(Event, said)
                failed = ConnectionFailed("the connection ended")
            except Exception as error:
                failed = error
            time.sleep(cursor.lost(call.path, self.retries, failed))


class Pages(Generic[T]):
    """A list, newest first. Iterating reads it to its end; `page` reads one page of it."""

    def __init__(self, transport: Transport, call: Call) -> None:
        self._transport = transport
        self._call = call

    def page(self, cursor: str | None = None) -> tuple[list[T], str | None]:
        """One page, the first or the one that begins here, and where the next one begins."""
        query = {**(self._call.query or {}), "cursor": cursor}
        page = self._transport.json(Call(self._call.method, self._call.path, query))
        return page["data"], page.get("nextCursor")

    def __iter__(self) -> Iterator[T]:
        cursor: str | None = None
        while True:
            data, cursor = self.page(cursor)
            for one in data:
                yield one
            if cursor is None:
                return


class TaskFilter(TypedDict, total=False):
    """Which tasks to list."""

    team: str
    project: str
    status: str
    repo: str
    model: str
    customer: str
    campaign: str
    createdAfter: str
    createdBefore: str
    limit: int


class AuditFilter(TypedDict, total=False):
    """Which rows of the audit to read."""

    team: str
    project: str
    actor: str
    repo: str
    model: str
    outcome: str
    kind: str
    category: str
    task: str
    since: str
    """A time, or a day (UTC); it is in."""
    until: str
    """A time, which is out, or a day (UTC), which is in."""
    limit: int


def _audit(filter: Mapping[str, Any]) -> dict[str, Any]:
    # `from` is a word of the language.
    words = {"since": "from", "until": "to"}
    return {words.get(name, name): value for name, value in filter.items()}


class Tasks:
    """Tasks: submitting them, following them, and what can be asked of them."""

    def __init__(self, transport: Transport) -> None:
        self._transport = transport

    @staticmethod
    def _path(id: str, rest: str = "") -> str:
        return f"/v1/tasks/{_calls.part(id)}{rest}"

    def create(self, task: TaskRequest, *, idempotency_key: str | None = None) -> Task:
        """Submits a task. Durable when it returns; `events` says what becomes of it."""
        call = Call("POST", "/v1/tasks", body=task, idempotency_key=idempotency_key)
        return cast(Task, self._transport.json(call))

    def get(self, id: str) -> Task:
        return cast(Task, self._transport.json(Call("GET", self._path(id))))

    def list(self, **filter: Unpack[TaskFilter]) -> Pages[Task]:
        """Tasks, newest first."""
        return Pages(self._transport, Call("GET", "/v1/tasks", filter))

    def _ask(self, id: str, rest: str, body: Mapping[str, Any], name: str | None) -> Task:
        call = Call("POST", self._path(id, rest), body=body, idempotency_key=name)
        return cast(Task, self._transport.json(call))

    def cancel(self, id: str, reason: str | None = None, *, idempotency_key: str | None = None) -> Task:
        """Asks for a task to be stopped."""
        return self._ask(id, "/cancel", {} if reason is None else {"reason": reason}, idempotency_key)

    def retry(
        self, id: str, credentials: CredentialsRequest | None = None, *, idempotency_key: str | None = None
    ) -> Task:
        """Starts a new attempt at a task that failed or was cancelled. New credentials may come along."""
        body = {} if credentials is None else {"credentials": credentials}
        return self._ask(id, "/retry", body, idempotency_key)

    def erase_content(self, id: str) -> None:
        """Erases the words of a task that is over for good. They may be gone only a while later."""
        self._transport.send(Call("DELETE", self._path(id, "/content")))

    def message(self, id: str, message: str, *, idempotency_key: str | None = None) -> Task:
        """Speaks to the running agent."""
        return self._ask(id, "/messages", {"message": message}, idempotency_key)

    def credentials(self, id: str, credentials: CredentialsRequest) -> Task:
        """Replaces the secrets of a task."""
        return cast(Task, self._transport.json(Call("PUT", self._path(id, "/credentials"), body=credentials)))

    def diff(self, id: str) -> str:
        """The unified diff of what was, or would be, pushed."""
        return self._transport.text(Call("GET", self._path(id, "/diff"), accept="text/x-diff"))

    def events(self, id: str, *, after: int | None = None) -> Generator[Event, None, None]:
        """What happened and what happens, without gap or repeat across cut connections, until the loop is left.

        While the model speaks, pieces of its text come between: `{"type": "delta", "text": …}`, without a revision.
        """
        return self._transport.follow(Call("GET", self._path(id, "/events"), accept="text/event-stream"), after)

    def wait(
        self, id: str, *, after: int | None = None, on_event: Callable[[Event], None] | None = None
    ) -> Task:
        """Waits for a task's end, from this event on. Raises `TaskFailed` unless it succeeded."""
        events = self.events(id, after=after)
        try:
            for event in events:
                if on_event is not None:
                    on_event(event)
                if event["type"] not in _calls.ENDS:
                    continue
                task = self.get(id)
                # An end of an attempt before the one that is going on now is none.
                if task["status"] == "succeeded":
                    return task
                if task["status"] in _calls.ENDS:
                    raise TaskFailed(task)
        finally:
            events.close()
        raise ConnectionFailed("a stream of events ended by itself")

    def run(
        self,
        task: TaskRequest,
        *,
        idempotency_key: str | None = None,
        on_event: Callable[[Event], None] | None = None,
    ) -> Task:
        """Submits a task and waits for its end. Raises `TaskFailed` unless it succeeded."""
        created = self.create(task, idempotency_key=idempotency_key)
        return self.wait(created["id"], on_event=on_event)


class Campaigns:
    """One task over many repositories."""

    def __init__(self, transport: Transport) -> None:
        self._transport = transport

    @staticmethod
    def _path(id: str, rest: str = "") -> str:
        return f"/v1/campaigns/{_calls.part(id)}{rest}"

    def create(self, campaign: CampaignRequest, *, idempotency_key: str | None = None) -> Campaign:
        call = Call("POST", "/v1/campaigns", body=campaign, idempotency_key=idempotency_key)
        return cast(Campaign, self._transport.json(call))

    def get(self, id: str) -> Campaign:
        return cast(Campaign, self._transport.json(Call("GET", self._path(id))))

    def list(
        self, *, team: str | None = None, status: str | None = None, limit: int | None = None
    ) -> Pages[Campaign]:
        """Campaigns, newest first."""
        return Pages(
            self._transport, Call("GET", "/v1/campaigns", {"team": team, "status": status, "limit": limit})
        )

    def _ask(self, id: str, rest: str, body: Mapping[str, Any], name: str | None) -> Campaign:
        call = Call("POST", self._path(id, rest), body=body, idempotency_key=name)
        return cast(Campaign, self._transport.json(call))

    def cancel(self, id: str, reason: str | None = None, *, idempotency_key: str | None = None) -> Campaign:
        """No further task is begun, and those that run are cancelled."""
        return self._ask(id, "/cancel", {} if reason is None else {"reason": reason}, idempotency_key)

    def retry(
        self, id: str, credentials: CredentialsRequest | None = None, *, idempotency_key: str | None = None
    ) -> Campaign:
        """Does again what failed. New credentials may come along."""
        body = {} if credentials is None else {"credentials": credentials}
        return self._ask(id, "/retry", body, idempotency_key)

    def credentials(self, id: str, credentials: CredentialsRequest) -> Campaign:
        """Replaces the secrets of a campaign and of all its tasks."""
        call = Call("PUT", self._path(id, "/credentials"), body=credentials)
        return cast(Campaign, self._transport.json(call))

    def erase_content(self, id: str) -> None:
        """Erases the words of a campaign that is over, and of its tasks, for good. They may be gone only a while later."""
        self._transport.send(Call("DELETE", self._path(id, "/content")))


class Budgets:
    """Caps of teams, projects, environments and task types, and where they stand."""

    def __init__(self, transport: Transport) -> None:
        self._transport = transport

    def get(self, scope: str) -> Budget:
        """A scope such as `team:platform` or `project:platform/infra`."""
        return cast(Budget, self._transport.json(Call("GET", f"/v1/budgets/{_calls.scope_path(scope)}")))

    def list(self, team: str | None = None) -> Sequence[Budget]:
        """A team's budgets; the key's own team when none is named."""
        found = cast(BudgetList, self._transport.json(Call("GET", "/v1/budgets", {"team": team})))
        return found["data"]

    def set(self, scope: str, budget: ScopeBudgetRequest) -> Budget:
        """Gives a scope caps in place of those it had."""
        call = Call("PUT", f"/v1/budgets/{_calls.scope_path(scope)}", body=budget)
        return cast(Budget, self._transport.json(call))


def _usage(group_by: Sequence[Dimension], since: str | None, until: str | None, team: str | None) -> dict[str, Any]:
    return {"groupBy": ",".join(group_by) or None, "from": since, "to": until, "team": team}


class UsageReports:
    """Tokens and dollars. Days are UTC, and both ends are in."""

    def __init__(self, transport: Transport) -> None:
        self._transport = transport

    def report(
        self,
        group_by: Sequence[Dimension] = (),
        *,
        since: str | None = None,
        until: str | None = None,
        team: str | None = None,
    ) -> Usage:
        call = Call("GET", "/v1/usage", _usage(group_by, since, until, team))
        return cast(Usage, self._transport.json(call))

    def csv(
        self,
        group_by: Sequence[Dimension] = (),
        *,
        since: str | None = None,
        until: str | None = None,
        team: str | None = None,
    ) -> str:
        """The same as comma-separated values."""
        call = Call("GET", "/v1/usage", _usage(group_by, since, until, team), accept="text/csv")
        return self._transport.text(call)


class Keys:
    """API keys."""

    def __init__(self, transport: Transport) -> None:
        self._transport = transport

    @staticmethod
    def _path(id: str, rest: str = "") -> str:
        return f"/v1/keys/{_calls.part(id)}{rest}"

    def create(self, key: KeyRequest, *, idempotency_key: str | None = None) -> IssuedKey:
        """Issues a key. Its text is in the answer to the first request, and `None` in that to a repeat."""
        call = Call("POST", "/v1/keys", body=key, idempotency_key=idempotency_key)
        return cast(IssuedKey, self._transport.json(call))

    def get(self, id: str) -> Key:
        return cast(Key, self._transport.json(Call("GET", self._path(id))))

    def list(self, *, team: str | None = None, limit: int | None = None) -> Pages[Key]:
        """Keys, newest first."""
        return Pages(self._transport, Call("GET", "/v1/keys", {"team": team, "limit": limit}))

    def rotate(
        self, id: str, overlap_seconds: int | None = None, *, idempotency_key: str | None = None
    ) -> IssuedKey:
        """Gives a key a new text; the one before works on for a while."""
        body = {} if overlap_seconds is None else {"overlapSeconds": overlap_seconds}
        call = Call("POST", self._path(id, "/rotate"), body=body, idempotency_key=idempotency_key)
        return cast(IssuedKey, self._transport.json(call))

    def revoke(self, id: str, *, itself: bool = False) -> None:
        """Revokes a key for good. `itself`: also if it is the key that asks."""
        self._transport.send(Call("DELETE", self._path(id), {"self": "true"} if itself else None))


class Audit:
    """Who did what, when, on which repository, with which model, at what cost, with which outcome."""

    def __init__(self, transport: Transport) -> None:
        self._transport = transport

    def list(self, **filter: Unpack[AuditFilter]) -> Pages[AuditEntry]:
        """Rows, newest first."""
        return Pages(self._transport, Call("GET", "/v1/audit", _audit(filter)))

    def csv(self, **filter: Unpack[AuditFilter]) -> str:
        """The same as comma-separated values."""
        return self._transport.text(Call("GET", "/v1/audit", _audit(filter), accept="text/csv"))

    def checkpoints(self, *, limit: int | None = None) -> Pages[CheckpointView]:
        """Signed statements about the log, newest first."""
        return Pages(self._transport, Call("GET", "/v1/audit/checkpoints", {"limit": limit}))

    def checkpoint(self, *, idempotency_key: str | None = None) -> CheckpointView:
        """Signs the log as it stands."""
        call = Call("POST", "/v1/audit/checkpoints", idempotency_key=idempotency_key)
        return cast(CheckpointView, self._transport.json(call))

    def key(self) -> AuditKey:
        """What checkpoints are signed with: the public half."""
        return cast(AuditKey, self._transport.json(Call("GET", "/v1/audit/key")))

    def export(self, *, content: bool = True) -> Generator[bytes, None, None]:
        """The whole log as a file, piece by piece, for `orchestra audit verify`. Without content, the words are left out."""
        query = {"content": "true" if content else "false"}
        return self._transport.pieces(Call("GET", "/v1/audit/export", query, accept="application/x-ndjson"))


class Billing:
    """What a team is billed. Months are written `2026-11`. The key's own team is meant where none is named."""

    def __init__(self, transport: Transport) -> None:
        self._transport = transport

    @staticmethod
    def _path(period: str, rest: str = "") -> str:
        return f"/v1/billing/periods/{_calls.part(period)}{rest}"

    def plans(self, team: str) -> BillingPlans:
        """A team's plans, every version."""
        return cast(BillingPlans, self._transport.json(Call("GET", f"/v1/billing/plans/{_calls.part(team)}")))

    def set_plan(self, team: str, plan: BillingPlanRequest) -> BillingPlans:
        """Has a plan go from its first day on."""
        call = Call("PUT", f"/v1/billing/plans/{_calls.part(team)}", body=plan)
        return cast(BillingPlans, self._transport.json(call))

    def periods(self, team: str | None = None) -> Sequence[BillingPeriod]:
        """The months in which anything was used, newest first."""
        found = cast(BillingPeriods, self._transport.json(Call("GET", "/v1/billing/periods", {"team": team})))
        return found["data"]

    def bill(
        self,
        period: str,
        *,
        team: str | None = None,
        customer: str | None = None,
        cursor: str | None = None,
        limit: int | None = None,
    ) -> Bill:
        """A bill, with the first of its lines, or those behind `cursor`: the `nextCursor` of the page before."""
        query = {"team": team, "customer": customer, "cursor": cursor, "limit": limit}
        return cast(Bill, self._transport.json(Call("GET", self._path(period), query)))

    def csv(self, period: str, *, team: str | None = None, customer: str | None = None) -> str:
        """Every line of a bill as comma-separated values."""
        query = {"team": team, "customer": customer}
        return self._transport.text(Call("GET", self._path(period), query, accept="text/csv"))

    def close(
        self, period: str, *, team: str | None = None, idempotency_key: str | None = None
    ) -> BillingPeriod:
        """Closes a month for good. Asked again, it answers what was closed."""
        call = Call("POST", self._path(period, "/close"), {"team": team}, idempotency_key=idempotency_key)
        return cast(BillingPeriod, self._transport.json(call))

    def push(
        self, period: str, webhook: str, *, team: str | None = None, idempotency_key: str | None = None
    ) -> BillingPeriod:
        """Sends a closed month's bill to a webhook that is told of bills."""
        path, body = self._path(period, "/push"), {"webhook": webhook}
        call = Call("POST", path, {"team": team}, body=body, idempotency_key=idempotency_key)
        return cast(BillingPeriod, self._transport.json(call))


class Webhooks:
    """Where events are sent."""

    def __init__(self, transport: Transport) -> None:
        self._transport = transport

    @staticmethod
    def _path(id: str, rest: str = "") -> str:
        return f"/v1/webhooks/{_calls.part(id)}{rest}"

    def create(self, webhook: WebhookRequest, *, idempotency_key: str | None = None) -> NewWebhook:
        """Makes a webhook. The secret that its messages are signed with is in the answer to the first request alone."""
        call = Call("POST", "/v1/webhooks", body=webhook, idempotency_key=idempotency_key)
        return cast(NewWebhook, self._transport.json(call))

    def get(self, id: str) -> Webhook:
        return cast(Webhook, self._transport.json(Call("GET", self._path(id))))

    def list(self, *, team: str | None = None, limit: int | None = None) -> Pages[Webhook]:
        return Pages(self._transport, Call("GET", "/v1/webhooks", {"team": team, "limit": limit}))

    def change(self, id: str, change: WebhookChange) -> Webhook:
        return cast(Webhook, self._transport.json(Call("PATCH", self._path(id), body=change)))

    def remove(self, id: str) -> None:
        self._transport.send(Call("DELETE", self._path(id)))

    def rotate_secret(
        self, id: str, overlap_seconds: int | None = None, *, idempotency_key: str | None = None
    ) -> WebhookSecret:
        """Makes the secret anew; for a while messages are signed with both."""
        body = {} if overlap_seconds is None else {"overlapSeconds": overlap_seconds}
        call = Call("POST", self._path(id, "/secret"), body=body, idempotency_key=idempotency_key)
        return cast(WebhookSecret, self._transport.json(call))

    def test(self, id: str) -> Delivery:
        """Sends a test, once for each attempt at this call, and answers what came of it."""
        return cast(Delivery, self._transport.json(Call("POST", self._path(id, "/test"))))

    def replay(self, id: str, what: WebhookReplayRequest, *, idempotency_key: str | None = None) -> Webhook:
        """Sends again one message, or a part of the log."""
        call = Call("POST", self._path(id, "/replay"), body=what, idempotency_key=idempotency_key)
        return cast(Webhook, self._transport.json(call))

    def deliveries(self, id: str, *, outcome: str | None = None, limit: int | None = None) -> Pages[Delivery]:
        query = {"outcome": outcome, "limit": limit}
        return Pages(self._transport, Call("GET", self._path(id, "/deliveries"), query))


class Orchestra:
    """A server, and a caller with a key.

    base_url: where the server is, such as `https://orchestra.example.com`.
    api_key: `orc_…`.
    max_retries: how often a request is tried again after the first time.
    timeout: the longest that one attempt may take, in seconds. A stream may last for ever.
    http: in place of a client of our own; it must not follow redirects.
    """

    def __init__(
        self,
        base_url: str,
        api_key: str,
        *,
        max_retries: int = 4,
        timeout: float = 60.0,
        http: httpx.Client | None = None,
    ) -> None:
        self._transport = Transport(base_url, api_key, max_retries, timeout, http)
        self.tasks = Tasks(self._transport)
        self.campaigns = Campaigns(self._transport)
        self.budgets = Budgets(self._transport)
        self.usage = UsageReports(self._transport)
        self.keys = Keys(self._transport)
        self.audit = Audit(self._transport)
        self.billing = Billing(self._transport)
        self.webhooks = Webhooks(self._transport)

    def events(
        self,
        *,
        after: int | None = None,
        types: Sequence[str] = (),
        team: str | None = None,
        task: str | None = None,
    ) -> Generator[Event, None, None]:
        """The whole log as far as the key may read it, and what is added, until the loop is left."""
        query = {"type": ",".join(types) or None, "team": team, "task": task}
        return self._transport.follow(Call("GET", "/v1/events", query, accept="text/event-stream"), after)

    def close(self) -> None:
        """Lets go of the connections."""
        self._transport.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
