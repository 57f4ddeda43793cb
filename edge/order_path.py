"""`POST /v1/sales/{sale_id}/orders`: connects the compiled order path to settings, sales and problem answers.

A usual request runs no Python code of this module after `exchange`. `slow_path` finishes the rare ones: a sale that
this worker has not read yet, a body without a length, a definition that the lane reports as stale.
"""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import Awaitable, Callable
from mmap import mmap
from typing import Any, Final, Protocol

import structlog
from redis.asyncio import Redis

from domain.problems import FieldError, Problem, ProblemDetails
from edge.authentication import HEADER_REPEATED_DETAIL, TOKEN_ENDED_DETAIL, OutsideBuyers
from edge.bodies import BodyTooLarge, BodyTruncated, read_body
from edge.cluster_link import ClusterLink
from edge.lane_marks import LaneMarks
from edge.problems import Answer, rate_limited, refuse, render
from edge.redis_link import RedisAddress, RedisLink
from edge.refusals import PROBLEM_OF_VERDICT
from edge.sale_directory import DirectoryUnavailable
from hotpath.batcher import Batcher, OrderTaker
from hotpath.counters import Counters, Verdict
from hotpath.exchange import Exchange
from hotpath.order_request import DEFINITION_STALE, OrderCore, OrderRequest
from hotpath.rates import UserRates
from hotpath.sales import SaleView
from hotpath.tickets import Ticket
from hotpath.tokens import KeyRing
from reservation.scripts import LOOKUP, RESERVE
from runtime.process.settings import Durability, Settings
from runtime.process.supervision import Beat, no_beat
from runtime.redis.addresses import ClusterAddress
from runtime.redis.cluster import ClusterRedis

_log = structlog.get_logger("edge.order_path")

BODY_LENGTH_MAX: Final = 4096
REFRESHES_MAX: Final = 3  # a definition that is stale after this many reads belongs to a lane under rebuild
# Up to so many times the rate, a repeated request gets the answer of the first one. The rest never reaches Redis.
CEILING_FACTOR: Final = 10
CEILING_BYTES: Final = 2**18  # 16,384 users of one worker
# A second batch leaves while one is on the wire when this many orders wait: Redis works while replies are processed.
# Measured with 128 and 256 connections: 8 gives 20% more orders than a full batch, at the same CPU time per order.
BATCH_SIZE_EARLY: Final = 8
REPLICA_WAIT_SHARE: Final = 0.5  # of the request deadline, for which a batch waits for a replica
SILENCE_FACTOR: Final = 2.0  # request deadlines for which Redis may owe replies
UNITS_ELSEWHERE_DETAIL: Final = (
    "The last units are on their way to your part of the sale. Repeat the request in a second"
)

_PROBLEMS: Final[dict[int, Problem]] = {
    **PROBLEM_OF_VERDICT,
    Verdict.TOKEN_MISSING: Problem.TOKEN_MISSING,
    Verdict.TOKEN_INVALID: Problem.TOKEN_INVALID,
    Verdict.TOKEN_EXPIRED: Problem.TOKEN_EXPIRED,
    Verdict.KEY_MISSING: Problem.IDEMPOTENCY_KEY_MISSING,
    Verdict.MEDIA_TYPE: Problem.UNSUPPORTED_MEDIA_TYPE,
    Verdict.BODY_TOO_LARGE: Problem.BODY_TOO_LARGE,
    Verdict.BODY_TIMEOUT: Problem.REQUEST_TIMEOUT,
    Verdict.SKU_NOT_FOUND: Problem.SKU_NOT_FOUND,
    Verdict.SALE_NOT_FOUND: Problem.SALE_NOT_FOUND,
    Verdict.INTERNAL_ERROR: Problem.INTERNAL_ERROR,
}


class Directory(Protocol):
    """The sales as the order path needs them (`edge.sale_directory.SaleDirectory`)."""

    find: Callable[[str], SaleView | None]

    async def load(self, sale_id: str) -> SaleView | None:
        """The view of a sale, read on first use; None for an unknown sale."""
        ...

    async def refresh(self, sale_id: str) -> SaleView | None:
        """The view of a sale after a new read."""
        ...

    def is_forgotten(self, sale_id: str, now_ms: int) -> bool:
        """Whether the sale ended so long ago that its lanes are cleared."""
        ...


class OrderPath:
    """The order path of one worker. `run` must run while `exchange` is used."""

    def __init__(
        self,
        settings: Settings,
        *,
        redis: Redis,
        ring: KeyRing,
        directory: Directory,
        outside: OutsideBuyers | None,
        rates: mmap,
    ) -> None:
        """`redis`: the client of `redis_url`; used for the owners of lanes in a cluster, not for orders.

        `rates` is the memory of users' rates (`edge.user_rates`).
        """
        self._settings = settings
        self._directory = directory
        self._deadline_s = settings.request_deadline_ms / 1000
        self._body_deadline_s = settings.body_deadline_ms / 1000
        self._counters = Counters()
        self._link: RedisLink | ClusterLink
        silence_s_max, marks = SILENCE_FACTOR * self._deadline_s, LaneMarks(settings.lanes)
        if isinstance(redis, ClusterRedis):
            self._link = ClusterLink(
                ClusterAddress.parse(settings.redis_url), redis, self._make_batcher,
                silence_s_max=silence_s_max, on_sweep=self._sweep, marks=marks,
            )  # fmt: skip
        else:
            self._link = RedisLink(
                RedisAddress.parse(settings.redis_url), self._make_batcher,
                silence_s_max=silence_s_max, on_sweep=self._sweep, marks=marks,
            )  # fmt: skip
        self._batcher: OrderTaker = self._link.batcher
        self.core = OrderCore(
            ring=ring,
            batcher=self._batcher,
            counters=self._counters,
            fixed_answers=fixed_answers(),
            answer_with_argument=self._answer_with_argument,
            answer_invalid=_answer_invalid,
            slow_path=self.slow_path,
            report=_report,
            verify_outside=None if outside is None else outside.verify,
            location_prefix="/v1/orders/",
            body_length_max=BODY_LENGTH_MAX,
            body_deadline_ms=settings.body_deadline_ms,
            rates=UserRates(rates, interval_us=1_000_000 // settings.user_rate, burst=settings.user_burst),
            ceiling=UserRates(
                bytearray(CEILING_BYTES),
                interval_us=max(1, 1_000_000 // (settings.user_rate * CEILING_FACTOR)),
                burst=settings.user_burst * CEILING_FACTOR,
            ),
        )

    def find_sale(self, sale_id: str) -> SaleView | None:
        """The sale, if this worker knows it."""
        return self._directory.find(sale_id)

    def exchange(self, scope: Any, protocol: Any, sale_id: str) -> Awaitable[None]:
        """Return an awaitable that answers the request and never raises."""
        return Exchange(self.core, scope, protocol, sale_id, self._directory.find(sale_id))

    async def run(self, beat: Beat = no_beat) -> None:
        """Maintain the connection to Redis and enforce all deadlines, with a beat at each sweep. Cancel to stop."""
        await self._link.run(beat)

    def refuse(self, refusing: bool) -> None:
        """While true, new orders are `overloaded`: Redis memory use is high."""
        self._batcher.refuse(refusing)

    def clock_measured(self, offset_ms: int) -> None:
        """Set Redis' clock minus the local one, for tokens before the first order. Each batch measures it again."""
        self._batcher.clock_offset_ms = offset_ms

    def snapshot(self) -> dict[str, Any]:
        """`orders` (hotpath.counters.Snapshot), `batcher` (counts), `queued`, `in_flight`, `waiting_for_body`."""
        return {
            "orders": self._counters.snapshot(),
            "batcher": {**self._batcher.stats(), "reconnects": max(0, self._link.connections - 1)},
            "queued": self._batcher.queued,
            "in_flight": self._batcher.in_flight,
            "waiting_for_body": self.core.waiting_for_body,
        }

    def _make_batcher(self, wake: Callable[[], None], on_redirect: Callable[[int, str], None] | None = None) -> Batcher:
        settings = self._settings
        reserve, lookup = RESERVE, LOOKUP
        return Batcher(
            reserve=(reserve.sha, reserve.source.encode()),
            lookup=(lookup.sha, lookup.source.encode()),
            emission_interval_us=1_000_000 // settings.user_rate,
            burst=settings.user_burst,
            stream_length_max=settings.stream_length_max,
            batch_size_max=settings.batch_size_max,
            batches_in_flight_max=settings.batches_in_flight_max,
            queue_length_max=settings.edge_queue_length_max,
            deadline_ms=settings.request_deadline_ms,
            wake=wake,
            batch_size_early=min(BATCH_SIZE_EARLY, settings.batch_size_max),
            replicas=1 if settings.durability is Durability.REPLICATED else 0,
            replica_wait_ms=max(1, int(settings.request_deadline_ms * REPLICA_WAIT_SHARE)),
            on_redirect=on_redirect,
        )

    def _sweep(self, now_ns: int) -> None:
        self.core.sweep(now_ns)

    def _answer_with_argument(self, verdict: int, wait_ms: int) -> Answer:
        if verdict == Verdict.NOT_OPEN:
            retry_after_s = math.ceil(wait_ms / 1000) if wait_ms else None  # the end of a pause is unknown
            return render(ProblemDetails(Problem.SALE_NOT_OPEN, retry_after_s=retry_after_s))
        return rate_limited(wait_ms, rate=self._settings.user_rate, burst=self._settings.user_burst)

    # ---- rare requests -----------------------------------------------------------------------------------------

    async def slow_path(self, exchange: OrderRequest, reason: int) -> None:
        """Answer a rare request. `reason` is one of `hotpath.order_request`."""
        if reason == DEFINITION_STALE:
            await self._resubmit_while_stale(exchange, exchange)
            return
        try:
            ticket = await self._first_ticket(exchange)
        except (DirectoryUnavailable, TimeoutError) as error:
            _log.warning("sale_not_read", sale_id=exchange.sale_id, error=str(error) or type(error).__name__)
            exchange.refuse(Verdict.UNAVAILABLE)
            return
        if ticket is not None:
            await self._ask(ticket)
            await self._resubmit_while_stale(exchange, ticket)

    async def _resubmit_while_stale(self, exchange: OrderRequest, ticket: Ticket) -> None:
        """Answer. While the lane reports the definition as stale, first read the definition again and resubmit."""
        try:
            for _ in range(REFRESHES_MAX):
                if ticket.verdict != Verdict.STALE:
                    break
                async with asyncio.timeout(self._deadline_s):
                    sale = await self._directory.refresh(exchange.sale_id)
                if sale is None:
                    break  # a published sale never leaves the directory: the directory is lost
                ticket = ticket.again(sale)
                await self._ask(ticket)
        except (DirectoryUnavailable, TimeoutError) as error:
            _log.warning("sale_not_read", sale_id=exchange.sale_id, error=str(error) or type(error).__name__)
        now_ms = int(time.time() * 1000) + self._batcher.clock_offset_ms
        if ticket.verdict == Verdict.STALE and self._directory.is_forgotten(exchange.sale_id, now_ms):
            exchange.refuse(Verdict.ENDED)
            return
        exchange.respond(ticket)

    async def _first_ticket(self, exchange: OrderRequest) -> Ticket | None:
        """The order, not submitted yet; None when the request has been answered."""
        sale = exchange.known_sale
        if sale is None:
            async with asyncio.timeout(self._deadline_s):
                sale = await self._directory.load(exchange.sale_id)
        if sale is None:
            exchange.refuse(Verdict.SALE_NOT_FOUND)
            return None
        body = await self._read_body(exchange)
        return None if body is None else exchange.ticket_for(sale, body)

    async def _ask(self, ticket: Ticket) -> None:
        if self._batcher.submit(ticket):
            await ticket

    async def _read_body(self, exchange: OrderRequest) -> bytes | None:
        """The whole body; None when the request has been answered."""
        if exchange.body is not None:
            return exchange.body
        protocol = exchange.rsgi_protocol
        try:
            async with asyncio.timeout(self._body_deadline_s):
                if exchange.has_length:
                    whole: bytes = await protocol()
                    return whole
                return await read_body(protocol, bytes_max=BODY_LENGTH_MAX)
        except BodyTooLarge:
            exchange.refuse(Verdict.BODY_TOO_LARGE)
        except BodyTruncated:
            exchange.refuse(Verdict.BODY_TRUNCATED)
        except TimeoutError:
            exchange.refuse(Verdict.BODY_TIMEOUT)
        except asyncio.CancelledError:
            raise
        except Exception as error:
            # Granian raises its own error for a truncated body.
            _log.info("body_broke_off", error=str(error))
            exchange.refuse(Verdict.BODY_TRUNCATED)
        return None


def fixed_answers() -> dict[int, Answer]:
    """The answers that have no parameters, by verdict."""
    return {
        **{int(verdict): render(ProblemDetails(problem)) for verdict, problem in _PROBLEMS.items()},
        int(Verdict.KEY_MALFORMED): refuse(
            Problem.MALFORMED_REQUEST, "The Idempotency-Key must be 1 to 64 visible ASCII characters"
        ),
        int(Verdict.UNITS_ELSEWHERE): refuse(Problem.OVERLOADED, UNITS_ELSEWHERE_DETAIL),
        int(Verdict.BODY_TRUNCATED): refuse(Problem.MALFORMED_REQUEST, "The body ended early"),
        int(Verdict.HEADER_REPEATED): refuse(Problem.MALFORMED_REQUEST, HEADER_REPEATED_DETAIL),
        int(Verdict.TOKEN_ENDED): refuse(Problem.TOKEN_INVALID, TOKEN_ENDED_DETAIL),
    }


def _answer_invalid(verdict: int, errors: list[tuple[str, str]]) -> Answer:
    if verdict == Verdict.BODY_MALFORMED:
        return refuse(Problem.MALFORMED_REQUEST, f"The body is {errors[0][1]}")
    return render(
        ProblemDetails(
            Problem.VALIDATION_FAILED, errors=tuple(FieldError(pointer, detail) for pointer, detail in errors)
        )
    )


def _report(error: BaseException) -> None:
    _log.error("order_failed", exc_info=error)
