"""Replies of a language model behind an OpenAI-compatible endpoint, which may be kept in a file."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import pathlib
import threading
import time
import urllib.parse
from collections.abc import Callable

from ba_jax import json_lines
from ba_jax.config import check_at_least
from ba_jax.speech.interfaces import SpeechToolError, import_tool

_RETRIED = frozenset((408, 409, 425, 429, 500, 502, 503, 504))


@dataclasses.dataclass(frozen=True)
class ChatSettings:
    """Settings of an endpoint.

    Attributes:
      base_url: the endpoint, "https://api.openai.com/v1" or "http://localhost:8000/v1".
      model: the model's name there.
      key_variable: environment variable that holds the API key; "" sends none.
      timeout: seconds to wait for a reply.
      retries: further tries after a temporary error (timeout, no connection, HTTP 429 or 5xx).
      backoff: seconds before the first retry; each further one waits twice as long.
      max_tokens: longest reply.
    """

    base_url: str = ""
    model: str = ""
    key_variable: str = ""
    timeout: float = 60.0
    retries: int = 3
    backoff: float = 1.0
    max_tokens: int = 4096

    def __post_init__(self):
        check_at_least(self, backoff=0, max_tokens=1, retries=0)
        if self.timeout <= 0:
            raise ValueError(f"timeout = {self.timeout}, expected more than 0")

    def check_address(self, name: str) -> None:
        """Raise ValueError, which names the settings, without an address or a model."""
        scheme = urllib.parse.urlsplit(self.base_url).scheme
        if scheme not in ("http", "https") or not self.model:
            raise ValueError(
                f"{name}.base_url {self.base_url!r}, model {self.model!r}: expected an http "
                "or https address and the model's name"
            )


class Chat:
    """Requests replies; those that are kept are not requested again.

    Args:
      settings: see `ChatSettings`.
      path: file of the kept replies; None keeps nothing.
      sleep: waits for some seconds; for tests.

    Raises:
      SpeechToolError: the API key's variable is not set.
    """

    def __init__(
        self,
        settings: ChatSettings,
        path: str | os.PathLike | None = None,
        sleep: Callable[[float], None] = time.sleep,
    ):
        self.settings, self._sleep = settings, sleep
        self._key = ""
        if settings.key_variable:
            self._key = os.environ.get(settings.key_variable, "").strip()
            if not self._key:
                raise SpeechToolError(
                    f"environment variable {settings.key_variable} is not set, expected the API "
                    f"key of {settings.base_url}"
                )
        self._path = None if path is None else pathlib.Path(path)
        self._replies = _read_replies(self._path)
        self._lock = threading.Lock()

    def body(self, system: str, prompt: str) -> bytes:
        """The body of a request; with its address it is the key of the kept reply."""
        messages = [{"role": "system", "content": system}, {"role": "user", "content": prompt}]
        s = self.settings
        body = {"model": s.model, "messages": messages, "temperature": 0}
        text = json.dumps(body | {"max_tokens": s.max_tokens}, ensure_ascii=False)
        return text.encode("utf-8", "backslashreplace")  # half of a surrogate pair as its escape

    def _key_of(self, body: bytes) -> str:
        return hashlib.sha256(f"{self.settings.base_url}\n".encode() + body).hexdigest()

    def kept(self, body: bytes) -> str | None:
        """The kept reply, or None."""
        return self._replies.get(self._key_of(body))

    def keep(self, body: bytes, reply: str) -> None:
        """Keep a reply."""
        key = self._key_of(body)
        with self._lock:
            is_kept = key in self._replies
            self._replies[key] = reply
            if is_kept or self._path is None:
                return
            self._path.parent.mkdir(parents=True, exist_ok=True)
            json_lines.append(self._path, [{"key": key, "said": reply}])

    def request(self, body: bytes) -> tuple[str | None, str]:
        """Request a reply, with retries; returns (None, the reason) if there is no readable one."""
        httpx = import_tool("httpx", "httpx")
        s, reason = self.settings, ""
        url = f"{s.base_url.rstrip('/')}/chat/completions"
        headers = {"Content-Type": "application/json"}
        if self._key:
            headers["Authorization"] = f"Bearer {self._key}"
        for attempt in range(s.retries + 1):
            if attempt:
                self._sleep(s.backoff * 2 ** (attempt - 1))
            try:
                response = httpx.post(url, content=body, headers=headers, timeout=s.timeout)
            except httpx.TransportError as error:
                reason = f"{type(error).__name__}: {error}"
                continue
            if not response.is_success:
                reason = f"HTTP {response.status_code} {response.reason_phrase}"
                if response.status_code in _RETRIED:
                    continue
                break
            try:
                reply = json.loads(response.content)["choices"][0]["message"]["content"]
                if isinstance(reply, str):
                    return reply, ""
                reason = f"a reply that is no chat completion (content {reply!r})"
            except (ValueError, KeyError, IndexError, TypeError, RecursionError) as error:
                content = response.content[:80]
                reason = f"a reply that is no chat completion ({error!r}): {content!r}"
        return None, reason


def _read_replies(path: pathlib.Path | None) -> dict[str, str]:
    lines = [] if path is None else json_lines.read(path, "key")
    return {line["key"]: line["said"] for line in lines if isinstance(line.get("said"), str)}
