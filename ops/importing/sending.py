"""Sends batches of products to a backoffice over HTTP, as a member of staff. Reads no files.

A batch may be sent any number of times: the backoffice leaves products unchanged that are as requested.
"""

from __future__ import annotations

import http.client
import json
import time
import urllib.error
import urllib.request
from dataclasses import dataclass, field
from typing import Any

from runtime.process.backoff import Backoff

ANSWER_S_MAX = 30.0
ATTEMPTS_MAX = 8  # about 15 s: longer than a restart takes
_AGAIN = frozenset((429, 500, 502, 503, 504))


class ImportFailed(Exception):
    """The backoffice does not answer or refuses the request; the message is the reason."""


@dataclass(slots=True)
class Backoffice:
    """A backoffice and a login; logs in when it has no valid token."""

    url: str
    email: str
    password: str = field(repr=False)
    _token: str | None = field(default=None, repr=False)

    def put(self, items: list[dict[str, Any]], *, dry_run: bool, on_error: str) -> list[dict[str, Any]]:
        """The result of each item, in order. Raises ImportFailed when the results are unknown."""
        body = {"items": items, "dry_run": dry_run, "on_error": on_error}
        results: list[dict[str, Any]] = self._ask("/v1/products/import", body)["results"]
        if len(results) != len(items):
            raise ImportFailed(f"{self.url}: sent {len(items)} products, got {len(results)} results")
        return results

    def _ask(self, path: str, body: Any) -> Any:
        backoff = Backoff(first_s=0.25, longest_s=4.0)
        logged_in = False
        for attempt in range(1, ATTEMPTS_MAX + 1):
            if self._token is None:
                logged_in = True
                self._token = self._log_in()
            try:
                return self._call(path, body, self._token)
            except urllib.error.HTTPError as error:
                if error.code == 401 and not logged_in:  # the token has expired
                    self._token = None
                    continue
                if error.code not in _AGAIN or attempt == ATTEMPTS_MAX:
                    raise ImportFailed(f"{self.url}: {_reason(error)}") from error
            except (OSError, http.client.HTTPException, ValueError) as error:
                if attempt == ATTEMPTS_MAX:
                    raise ImportFailed(f"{self.url}: no answer: {getattr(error, 'reason', error)}") from error
            time.sleep(backoff.next_s())
        raise ImportFailed(f"{self.url}: no answer")

    def _log_in(self) -> str:
        try:
            answer = self._call("/v1/auth/login", {"email": self.email, "password": self.password}, None)
            return str(answer["access_token"])
        except urllib.error.HTTPError as error:
            raise ImportFailed(f"{self.url}: login refused: {_reason(error)}") from error
        except (OSError, http.client.HTTPException, ValueError, KeyError) as error:
            raise ImportFailed(f"{self.url}: login failed: {getattr(error, 'reason', error)}") from error

    def _call(self, path: str, body: Any, token: str | None) -> Any:
        headers = {"Content-Type": "application/json"}
        if token is not None:
            headers["Authorization"] = f"Bearer {token}"
        request = urllib.request.Request(  # noqa: S310 - the caller has checked the scheme
            self.url + path, data=json.dumps(body).encode(), headers=headers, method="POST"
        )
        with urllib.request.urlopen(request, timeout=ANSWER_S_MAX) as answer:  # noqa: S310 - as above
            return json.loads(answer.read())


def _reason(error: urllib.error.HTTPError) -> str:
    try:
        problem = json.loads(error.read(64 * 1024))
        return f"{error.code} {problem['code']} {problem.get('detail', '')}".strip()
    except (ValueError, KeyError, TypeError, OSError):
        return f"status {error.code}"
