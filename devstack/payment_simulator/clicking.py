"""A buyer at the simulator's page, for programs that play buyers."""

from __future__ import annotations

from typing import Final

import aiohttp

_SEE_OTHER: Final = 303


async def click(session: aiohttp.ClientSession, page: str, action: str) -> bool:
    """Click a button of a payment page; whether it confirms a payment. `action` is the value of the button.

    Raises aiohttp.ClientError, OSError or TimeoutError without an answer: a second click on a paid page pays nothing,
    except with `pay_twice`.
    """
    async with session.post(page, data={"action": action}, allow_redirects=False) as answer:
        # A declined payment leads back to the page itself.
        return answer.status == _SEE_OTHER and answer.headers.get("Location", "").startswith("http")
