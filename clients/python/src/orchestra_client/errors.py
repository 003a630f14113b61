"""What can go wrong, as types that a caller can tell apart."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from .models import Exhausted, FailureCode, FailureView, Field, Task


class OrchestraError(Exception):
    """The server said no. `code` says why; `detail` says what to do next."""

    def __init__(self, status: int, problem: Mapping[str, Any]) -> None:
        self.status = status
        """The HTTP status."""
        self.code: str = problem.get("code", "unknown")
        """The stable code, one of `models.ProblemCode`; `unknown` where something before the server answered."""
        self.detail: str = problem.get("detail", "")
        """What happened, and what to do next."""
        self.errors: list[Field] = problem.get("errors", [])
        """The fields that do not do, each with its JSON pointer."""
        self.budget: Exhausted | None = problem.get("budget")
        """The cap that is met, with the code `budget-exceeded`."""
        fields = [f"{field['pointer'] or '/'}: {field['detail']}" for field in self.errors]
        super().__init__("\n  ".join([f"{self.code} ({status}): {self.detail or 'no explanation'}", *fields]))


class TaskFailed(Exception):
    """A task that was waited for did not succeed."""

    def __init__(self, task: Task) -> None:
        self.task = task
        """The task as it stands."""
        self.failure: FailureView | None = task.get("failure")
        """Why, in its full shape; `None` for a task that was cancelled."""
        self.code: FailureCode = self.failure["code"] if self.failure else "cancelled"
        """The failure's code; `cancelled` for a task that was cancelled."""
        self.retryable: bool = self.failure["retryable"] if self.failure else False
        """Whether doing the same again may succeed."""
        why = f"{self.failure['message']}\n  {self.failure['hint']}" if self.failure else task["reason"]
        super().__init__(f"{task['id']}: {self.code}: {why}")


class ConnectionFailed(Exception):
    """The server could not be reached, however often it was tried. `__cause__` is the last reason."""
