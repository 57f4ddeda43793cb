"""`flashsale import products`: parsing of files, results of lines, exit statuses."""

from __future__ import annotations

import contextlib
import csv
import io
import json
import os
import pty
import random
import subprocess
import sys
import tracemalloc
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psycopg
import pytest
from typer.testing import CliRunner

from ops import cli
from ops.importing import run
from ops.importing.reading import FIELD_CHARACTERS_MAX, LINE_CHARACTERS_MAX, Format, Line, Unreadable, read
from ops.importing.run import BATCH_BYTES_MAX, BATCH_ITEMS_MAX, ERRORS_MAX, Summary, import_products
from ops.importing.sending import Backoffice, ImportFailed
from tests.fixtures.fix_backoffice import ADMIN_EMAIL, ADMIN_PASSWORD, BackofficeProcess
from tests.fixtures.fix_databases import Databases

ROOT = Path(__file__).resolve().parents[2]


def lines(text: str | bytes, form: Format = Format.CSV) -> list[Line]:
    raw = io.BytesIO(text.encode() if isinstance(text, str) else text)
    return list(read(io.TextIOWrapper(raw, encoding="utf-8-sig", newline=""), form))


def test_csv_becomes_products() -> None:
    text = (
        "\ufeffsku,name,price_minor,active,attributes.color,attributes,description,currency\r\n"
        'A,"Lamp, ""red""",1999,true,red,"{""n"": 1, ""color"": ""x""}","two\nlines",EUR\r\n'
        "\r\n"
        "B,Stuhl,5,,,,,\r\n"
        "C,é漢,0,No,,,,\r\n"
    )
    assert lines(text) == [
        Line(
            3,
            {
                "sku": "A",
                "name": 'Lamp, "red"',
                "price_minor": 1999,
                "active": True,
                "attributes": {"n": 1, "color": "red"},
                "description": "two\nlines",
                "currency": "EUR",
            },
        ),
        Line(5, {"sku": "B", "name": "Stuhl", "price_minor": 5}),
        Line(6, {"sku": "C", "name": "é漢", "price_minor": 0, "active": False}),
    ]


@pytest.mark.parametrize("delimiter", [",", ";", "\t"])
def test_delimiters_are_seen_by_the_header(delimiter: str) -> None:
    text = delimiter.join(("sku", "name")) + "\n" + delimiter.join(("A", "x")) + "\n"
    assert lines(text) == [Line(2, {"sku": "A", "name": "x"})]
    assert lines("sku\nA\n") == [Line(2, {"sku": "A"})]


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        ("A,19.99,true,{}", "price_minor '19.99' is not a whole number; prices are in minor units, 19.99 is 1999"),
        ("A,1e3,true,{}", "price_minor '1e3' is not a whole number; prices are in minor units, 19.99 is 1999"),
        ("A,\u0661,true,{}", "price_minor '\u0661' is not a whole number; prices are in minor units, 19.99 is 1999"),
        ("A,5,perhaps,{}", "active 'perhaps' is neither true nor false"),
        ("A,5,true,[]", "attributes are not a JSON object"),
        (
            "A,5,true,{",
            "attributes are not JSON: Expecting property name enclosed in double quotes: line 1 column 2 (char 1)",
        ),
        ("A,5,true", "has 3 cells, the header 4"),
        ("A,5,true,{},x", "has 5 cells, the header 4"),
    ],
)
def test_rows_that_are_no_products(row: str, reason: str) -> None:
    assert lines(f"sku,price_minor,active,attributes\n{row}\nB,1,,\n") == [
        Line(2, error=reason),
        Line(3, {"sku": "B", "price_minor": 1}),
    ]


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("", "the file is empty; its first line names the columns"),
        ("name\nx\n", "line 1: there is no column 'sku'; add it"),
        ("sku,price\nA,1\n", "line 1: unknown column 'price'"),
        ("sku,attributes.\nA,1\n", "line 1: unknown column 'attributes.'"),
        ("sku,name,name\nA,1,2\n", "line 1: duplicate column; remove one of them"),
        ('sku,name\nA,"x"y\n', "line 2: not CSV"),
        ('sku,name\nA,"never closed\n', "line 2: not CSV"),
        ("sku,name\nA," + "x" * (FIELD_CHARACTERS_MAX + 1) + "\n", "line 2: not CSV: field larger than field limit"),
        ("sku,name\nA," + "x" * LINE_CHARACTERS_MAX + "\n", f"line 2: longer than {LINE_CHARACTERS_MAX} characters"),
        (b"sku,name\nA,\xff\n", "line 1 or a few lines later: not UTF-8"),
        ("sku,name\nA,x\n".encode("utf-16"), "line 1 or a few lines later: not UTF-8"),
    ],
)
def test_files_that_cannot_be_read(text: str | bytes, reason: str) -> None:
    with pytest.raises(Unreadable) as error:
        lines(text)
    assert str(error.value).startswith(reason)


def test_json_lines_become_products() -> None:
    text = '\ufeff{"sku": "A", "attributes": {"n": 1.5}}\n\n  \n{"sku": "B"}'
    assert lines(text, Format.JSONL) == [Line(1, {"sku": "A", "attributes": {"n": 1.5}}), Line(4, {"sku": "B"})]
    wrong = lines('{"sku": NaN}\n[]\n{\n"x"\n' + "[" * 100_000 + '\n{"sku": "Z"}\n', Format.JSONL)
    assert [line.error.partition(":")[0] for line in wrong] == [
        "not JSON", "not a JSON object", "not JSON", "not a JSON object", "not JSON", "",
    ]  # fmt: skip
    for whole in ('[{"sku": "A"},\n{"sku": "B"}]', "[\n"):
        with pytest.raises(Unreadable, match="one JSON document"):
            lines(whole, Format.JSONL)


def test_any_text_is_read_or_refused() -> None:
    seed = random.randrange(2**32)
    print(f"seed {seed}")  # noqa: T201 - replay with it
    rng = random.Random(seed)
    for _ in range(2000):
        text = "sku,name\n" + "".join(rng.choices('A",\n\r;\t\x00é {}[]:1', k=rng.randint(0, 40)))
        for form in Format:
            with contextlib.suppress(Unreadable):
                assert all((line.item is None) == bool(line.error) for line in lines(text, form))


class Recorded:
    """A sink that accepts all items except those named `bad`."""

    def __init__(self, fails_at: int = 0) -> None:
        self.batches: list[list[dict[str, Any]]] = []
        self._fails_at = fails_at

    def put(self, items: list[dict[str, Any]], *, dry_run: bool, on_error: str) -> list[dict[str, Any]]:
        assert not dry_run
        self.batches.append(items)
        if len(self.batches) == self._fails_at:
            raise ImportFailed("away")
        results: list[dict[str, Any]] = []
        for item in items:
            bad = item["sku"].startswith("bad")
            stopped = on_error == "stop" and any(result["outcome"] == "refused" for result in results)
            outcome = "left_out" if stopped else "refused" if bad else "created"
            errors = [{"pointer": "/sku", "detail": "is bad"}] if outcome == "refused" else []
            results.append({"sku": item["sku"], "outcome": outcome, "errors": errors})
        return results


def run_import(source: Iterator[Line] | list[Line], sink: Recorded, *, stop: bool = False) -> Summary:
    return import_products(source, sink, dry_run=False, stop=stop, progress=lambda _: None)


def test_batches_are_bounded_in_number_and_size() -> None:
    sink = Recorded()
    assert run_import([Line(n, {"sku": str(n)}) for n in range(2 * BATCH_ITEMS_MAX + 1)], sink).created == 1001
    assert [len(batch) for batch in sink.batches] == [BATCH_ITEMS_MAX, BATCH_ITEMS_MAX, 1]
    sink = Recorded()
    big = {"sku": "A", "description": "x" * (BATCH_BYTES_MAX // 3)}
    summary = run_import(
        [Line(n, big) for n in range(5)] + [Line(9, {"sku": "B", "name": "x" * BATCH_BYTES_MAX})], sink
    )
    assert [len(batch) for batch in sink.batches] == [2, 2, 1]
    assert (summary.created, summary.refused) == (5, 1)
    assert summary.errors == [{"line": 9, "sku": "B", "reason": f"larger than {BATCH_BYTES_MAX} bytes"}]


def test_errors_are_told_by_line_and_bounded() -> None:
    source = [Line(n, {"sku": f"bad{n}"}) for n in range(1, ERRORS_MAX + 8)] + [
        Line(99, error="no"),
        Line(100, {"sku": "A"}),
    ]
    summary = run_import(source, Recorded())
    assert (summary.created, summary.refused, len(summary.errors), summary.errors_left_out) == (1, 58, ERRORS_MAX, 8)
    assert summary.errors[0]["line"] in (1, 99)
    assert {"line": 1, "sku": "bad1", "reason": "/sku is bad"} in summary.errors
    assert summary.failed and not summary.stopped


@pytest.mark.parametrize("third", [Line(3, {"sku": "bad"}), Line(3, error="no product")])
def test_stop_leaves_the_rest(third: Line) -> None:
    sink = Recorded()
    source = iter(
        [Line(1, {"sku": "A"}), Line(2, {"sku": "B"}), third, *(Line(n, {"sku": str(n)}) for n in range(4, 2000))]
    )
    summary = run_import(source, sink, stop=True)
    assert (summary.created, summary.refused, summary.stopped, summary.errors[0]["line"]) == (2, 1, True, 3)
    assert len(sink.batches) == 1


def test_a_failure_in_between_tells_what_is_done() -> None:
    summary = run_import([Line(n, {"sku": str(n)}) for n in range(1200)], Recorded(fails_at=2))
    assert (summary.created, summary.failure, summary.failed) == (500, "away", True)

    def broken() -> Iterator[Line]:
        yield Line(1, {"sku": "A"})
        raise Unreadable("line 2: torn")

    summary = run_import(broken(), Recorded())
    assert (summary.created, summary.failure, summary.failed) == (1, "line 2: torn", True)


def test_a_large_file_needs_little_memory() -> None:
    def text() -> Iterator[bytes]:
        yield b"sku,name,description\n"
        for n in range(20_000):
            yield b"SKU-%d,A thing,%s\n" % (n, b"x" * 500)

    class Chunks(io.RawIOBase):
        def __init__(self) -> None:
            self._chunks = text()
            self._left = b""

        def readable(self) -> bool:
            return True

        def readinto(self, buffer: Any) -> int:
            self._left = self._left or next(self._chunks, b"")
            size = min(len(buffer), len(self._left))
            buffer[:size], self._left = self._left[:size], self._left[size:]
            return size

    class Forgets(Recorded):
        def put(self, items: list[dict[str, Any]], *, dry_run: bool, on_error: str) -> list[dict[str, Any]]:
            results = super().put(items, dry_run=dry_run, on_error=on_error)
            self.batches.clear()
            return results

    file = io.TextIOWrapper(io.BufferedReader(Chunks()), encoding="utf-8-sig", newline="")
    tracemalloc.start()
    try:
        summary = import_products(read(file, Format.CSV), Forgets(), dry_run=False, stop=False, progress=lambda _: None)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert summary.created == 20_000
    assert peak < 6 * 1024 * 1024  # the file has 10 MB


def command(
    process: BackofficeProcess, *arguments: str, text: str | None = None, **environ: str
) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [
            *(sys.executable, "-m", "ops.cli", "import", "products"),
            *("--url", process.url, "--email", ADMIN_EMAIL, *arguments),
        ],
        capture_output=True, text=True, timeout=120, cwd=ROOT, input=text, check=False,
        env={**os.environ, "STAFF_PASSWORD": ADMIN_PASSWORD, **environ},
    )  # fmt: skip


@pytest.fixture(scope="module")
def shop(
    tmp_path_factory: pytest.TempPathFactory, redis_server: Any, migrated: Databases
) -> Iterator[BackofficeProcess]:
    migrated.empty()
    process = BackofficeProcess(tmp_path_factory.mktemp("import-backoffice"), redis_server.url, migrated)
    process.start()
    yield process
    process.kill()


@pytest.fixture
def rows(shop: BackofficeProcess) -> Iterator[psycopg.Connection[Any]]:
    with psycopg.connect(shop.databases.catalogue_dsn, autocommit=True) as connection:
        connection.execute("DELETE FROM products")
        yield connection


def stored(rows: psycopg.Connection[Any]) -> list[tuple[Any, ...]]:
    return rows.execute("SELECT sku, name, price_minor, attributes, version FROM products ORDER BY sku").fetchall()


def test_a_file_is_imported_once_however_often(
    shop: BackofficeProcess, rows: psycopg.Connection[Any], tmp_path: Path
) -> None:
    file = tmp_path / "products.csv"
    with file.open("w", newline="", encoding="utf-8-sig") as out:
        writer = csv.writer(out)
        writer.writerow(["sku", "name", "price_minor", "currency", "attributes.color"])
        writer.writerows([[f"S-{n:04d}", f"Thing {n}", n, "EUR", "red" if n % 2 else ""] for n in range(1200)])
    tried = command(shop, str(file), "--dry-run")
    assert (tried.returncode, tried.stdout, tried.stderr) == (
        0, "would be created 1200, would be updated 0, unchanged 0, refused 0\n", "",
    )  # fmt: skip
    assert stored(rows) == []
    done = command(shop, str(file))
    assert (done.returncode, done.stdout, done.stderr) == (0, "created 1200, updated 0, unchanged 0, refused 0\n", "")
    before = stored(rows)
    assert before[0] == ("S-0000", "Thing 0", 0, {}, 1)
    assert before[1199] == ("S-1199", "Thing 1199", 1199, {"color": "red"}, 1)
    again = command(shop, str(file), "--json")
    assert json.loads(again.stdout) == {
        "file": str(file), "dry_run": False, "lines": 1200, "created": 0, "updated": 0, "unchanged": 1200, "refused": 0,
        "stopped": False, "errors": [], "errors_left_out": 0, "failure": None,
    }  # fmt: skip
    assert stored(rows) == before


def test_refused_lines_stop_or_are_left_out(shop: BackofficeProcess, rows: psycopg.Connection[Any]) -> None:
    text = "".join(
        json.dumps({"sku": sku, "name": "x", "price_minor": price, "currency": "EUR"}) + "\n"
        for sku, price in (("A", 1), ("B", -1), ("C", 3))
    )
    reason = "line 2: 'B': /price_minor Input should be greater than or equal to 0\n"
    stopped = command(shop, "-", "--format", "jsonl", text=text)
    assert (stopped.returncode, stopped.stderr) == (1, reason)
    assert stopped.stdout == "created 1, updated 0, unchanged 0, refused 1; stopped there\n"
    assert [row[0] for row in stored(rows)] == ["A"]
    skipped = command(shop, "-", "--format", "jsonl", "--on-error", "skip", text=text)
    assert (skipped.returncode, skipped.stderr) == (1, reason)
    assert skipped.stdout == "created 1, updated 0, unchanged 1, refused 1\n"
    assert [row[0] for row in stored(rows)] == ["A", "C"]


def test_progress_is_for_terminals(shop: BackofficeProcess, rows: psycopg.Connection[Any], tmp_path: Path) -> None:
    assert rows
    file = tmp_path / "p.csv"
    file.write_text("sku,name,price_minor,currency\nA,x,1,EUR\n")
    leader, follower = pty.openpty()
    try:
        process = subprocess.Popen(
            [
                *(sys.executable, "-m", "ops.cli", "import", "products", str(file)),
                *("--url", shop.url, "--email", ADMIN_EMAIL),
            ],
            stderr=follower, stdout=subprocess.PIPE, cwd=ROOT,
            env={**os.environ, "STAFF_PASSWORD": ADMIN_PASSWORD, "TERM": "xterm"},
        )  # fmt: skip
        out, _ = process.communicate(timeout=60)
        os.set_blocking(leader, False)
        shown = os.read(leader, 100_000)
    finally:
        os.close(leader)
        os.close(follower)
    assert (process.returncode, out) == (0, b"created 1, updated 0, unchanged 0, refused 0\n")
    assert b"lines" in shown


def test_wrong_usage(shop: BackofficeProcess, tmp_path: Path) -> None:
    file = tmp_path / "p.csv"
    file.write_text("sku\nA\n")
    no_stack = ("--state-dir", str(tmp_path / "none"))
    for arguments, status, words in (
        ((str(tmp_path / "none.csv"), "--url", shop.url, "--email", ADMIN_EMAIL), 2, "No such file"),
        ((str(tmp_path), "--format", "csv", "--url", shop.url, "--email", ADMIN_EMAIL), 2, "directory"),
        ((str(tmp_path / "p.xlsx"), "--url", shop.url, "--email", ADMIN_EMAIL), 2, "--format"),
        ((str(file), "--url", shop.url), 2, "--email"),
        ((str(file), "--url", "ftp://x", "--email", "x"), 2, "--url"),
        ((str(file), "--email", "x", *no_stack), 2, "--email"),
        ((str(file), "--on-error", "x"), 2, "--on-error"),
        ((str(file), *no_stack), 1, "no stack is up"),
    ):
        done = CliRunner().invoke(
            cli.app, ["import", "products", *arguments], env={"STAFF_PASSWORD": "x", "COLUMNS": "200"}
        )
        told = done.stderr + str(done.exception)
        assert (done.exit_code, words in told) == (status, True), (arguments, told)


def test_a_refused_login_and_a_backoffice_that_is_away(
    shop: BackofficeProcess, monkeypatch: pytest.MonkeyPatch
) -> None:
    refused = command(shop, "-", "--format", "csv", text="sku\nA\n", STAFF_PASSWORD="wrong")
    assert refused.returncode == 1
    assert "login refused: 401 credentials_invalid" in refused.stderr
    monkeypatch.setattr(run, "BATCH_ITEMS_MAX", 1)
    away = Backoffice("http://127.0.0.1:9", "x", "x")
    summary = import_products([Line(1, {"sku": "A"})], away, dry_run=False, stop=True, progress=lambda _: None)
    assert summary.failure is not None and "127.0.0.1:9" in summary.failure
