"""Failover of a real pair: nothing that was committed is lost, no two primaries, and every interruption is finished."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

import psycopg
import pytest

from devstack import pgbouncer, postgres_failover
from devstack.pgbouncer import PgBouncer
from devstack.postgres_failover import FailoverError, fail_over
from devstack.postgres_pair import PostgresNode, PostgresPair, pair_at
from runtime.postgres.connection import connect_command
from tests.fixtures.fix_pair import until

CALL_S_MAX = 5.0


class OwnServers:
    """The test started the servers, so it stops them."""

    def hold(self, node: PostgresNode) -> None:
        if node.process is not None:
            node.kill()

    def release(self, node: PostgresNode) -> None:
        if node.process is None:
            node.start()


@dataclass
class Tier:
    """A pair, its pooler, and a writer of numbers through the pooler."""

    pair: PostgresPair
    pooler: PgBouncer
    committed: list[int] = field(default_factory=list)
    _stop: threading.Event = field(default_factory=threading.Event)

    def repoint(self, primary: PostgresNode) -> None:
        self.pooler.server_port = primary.port
        self.pooler.reload()

    def fail_over(self) -> postgres_failover.FailedOver:
        return fail_over(self.pair, control=OwnServers(), repoint=self.repoint, say=lambda _: None)

    @contextmanager
    def writing(self) -> Iterator[None]:
        """Commit numbers one after another meanwhile; `committed` are those whose COMMIT was answered."""
        self._stop.clear()
        thread = threading.Thread(target=self._write)
        thread.start()
        try:
            until(lambda: len(self.committed) > 20)
            yield
            before = len(self.committed)
            until(lambda: len(self.committed) > before + 20)
        finally:
            self._stop.set()
            thread.join()

    def _write(self) -> None:
        number = max(self.committed, default=0)
        while not self._stop.is_set():
            try:
                with connect_command(self.pooler.dsn("postgres"), call_s_max=CALL_S_MAX) as connection:
                    while not self._stop.is_set():
                        number += 1
                        connection.execute("INSERT INTO written VALUES (%s)", (number,))
                        self.committed.append(number)
            except psycopg.Error:
                self._stop.wait(0.05)

    def stored(self) -> set[int]:
        return {number for (number,) in self.pair.primary.ask("SELECT number FROM written")}


@pytest.fixture(scope="module")
def tier(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Tier]:
    """A pair of this file's own: its servers change roles. Each test leaves it in step."""
    if pgbouncer.program() is None:
        pytest.skip(pgbouncer.HOW_TO_INSTALL)
    tmp_path = tmp_path_factory.mktemp("failover")
    pair = pair_at(tmp_path, "shard-0")
    pooler: PgBouncer | None = None
    try:
        pair.start()
        pair.primary.ask("CREATE TABLE written (number integer)")
        pooler = PgBouncer(tmp_path / "pgbouncer-0", pair.primary.port, pair.primary.password, pool_size=4)
        pooler.start()
        yield Tier(pair, pooler)
    finally:
        if pooler is not None:
            pooler.destroy()
        pair.destroy()


def test_a_killed_primary_is_replaced_under_load_and_back_again(tier: Tier) -> None:
    """Kill, fail over, rewind; then the same in the other direction. Each answered COMMIT is in both servers."""
    for _ in range(2):
        with tier.writing():
            old = tier.pair.primary
            old.kill()
            done = tier.fail_over()
        assert done.rejoined == "rewind"
        assert tier.pair.standby is old
        assert set(tier.committed) <= tier.stored()
        assert tier.pair.in_step()
        until(lambda: tier.pair.standby.ask("SELECT count(*) FROM written") == [(len(tier.stored()),)])


def test_a_primary_that_is_alive_is_fenced_and_cannot_come_back_as_one(tier: Tier) -> None:
    """A failover of a healthy pair; between the fence and the promotion nobody takes writes."""
    old = tier.pair.primary
    with tier.writing():
        tier.fail_over()
    assert set(tier.committed) <= tier.stored()
    assert old.ask("SELECT pg_is_in_recovery()") == [(True,)]
    with pytest.raises(psycopg.errors.ReadOnlySqlTransaction):
        old.ask("INSERT INTO written VALUES (0)")


@pytest.mark.parametrize("step", ["_promote", "_rejoin", "_await_in_step"])
def test_an_interrupted_failover_is_finished_by_the_next_run(
    tier: Tier, step: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Killed(Exception):
        pass

    def killed(*_: object) -> None:
        raise Killed

    old, new = tier.pair.primary, tier.pair.standby
    with monkeypatch.context() as patch:
        patch.setattr(postgres_failover, step, killed)
        with pytest.raises(Killed):
            tier.fail_over()
    assert old.is_fenced and tier.pair.primary is new
    tier.fail_over()
    assert tier.pair.primary is new and not old.is_fenced and tier.pair.in_step()


def test_a_fenced_server_is_cloned_when_the_pair_starts_again(tier: Tier) -> None:
    """The machine went down between fence and promotion: the successor starts as the primary, the other follows."""
    pair = tier.pair
    old, new = pair.primary, pair.standby
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(postgres_failover, "_promote", lambda _: (_ for _ in ()).throw(FailoverError("killed")))
        with pytest.raises(FailoverError, match="killed"):
            tier.fail_over()
    pair.primary.stop()
    pair.start()
    assert pair.primary is new and pair.in_step() and not old.is_fenced
    tier.repoint(new)


def test_a_standby_that_is_away_is_not_promoted(tier: Tier) -> None:
    tier.pair.standby.kill()
    with pytest.raises(FailoverError, match="does not answer"):
        tier.fail_over()
    assert not tier.pair.primary.is_fenced
    tier.pair.start_standby()
