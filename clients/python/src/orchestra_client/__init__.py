"""Orchestra's REST interface and event streams, typed, blocking and asynchronous."""

from . import models
from ._asynchronous import AsyncOrchestra
from ._blocking import Orchestra
from .errors import ConnectionFailed, OrchestraError, TaskFailed

__all__ = ["AsyncOrchestra", "ConnectionFailed", "Orchestra", "OrchestraError", "TaskFailed", "models"]
