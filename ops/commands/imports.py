"""`import`: create and change products from a file."""

from __future__ import annotations

import contextlib
import io
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any, Literal
from urllib.parse import urlsplit

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn

from ops.commands.options import AsJson, StateDir, print_json
from ops.importing.reading import Format, read
from ops.importing.run import Summary, import_products
from ops.importing.sending import Backoffice
from ops.target import resolve

PASSWORD_VARIABLE = "STAFF_PASSWORD"

app = typer.Typer(no_args_is_help=True, help="Import data from files: products.")


@app.callback()
def _group() -> None:
    """Import data from files: products."""


@app.command()
def products(
    file: Annotated[str, typer.Argument(metavar="FILE", help="CSV or JSON lines, UTF-8; `-` reads standard input.")],
    form: Annotated[Format | None, typer.Option("--format", help="Default: by the file's extension.")] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Report the result of each line; change nothing.")] = False,
    on_error: Annotated[
        Literal["stop", "skip"], typer.Option(help="At a refused line: stop there, or skip it and continue.")
    ] = "stop",
    url: Annotated[str | None, typer.Option(help="Backoffice. Default: FLASHSALE_LINK_URL, or the stack's.")] = None,
    email: Annotated[
        str | None,
        typer.Option(help=f"Login, with --url; the password comes from {PASSWORD_VARIABLE} or a prompt."),
    ] = None,
    as_json: AsJson = False,
    state_dir: StateDir = None,
) -> None:
    """Create or change products by SKU. Importing the same file again changes nothing: repeat an interrupted import.

    CSV has a header with some of: sku, name, description, price_minor, currency, active, attributes (JSON),
    attributes.NAME. JSON lines have one object per line, with the first seven as members. Prices are in minor units:
    19.99 is 1999. Values that a line does not contain stay unchanged. Exit status 1 when a line was refused.
    """
    known = form or Format.of(file)
    if known is None:
        raise typer.BadParameter("give csv or jsonl: the file's extension is unknown", param_hint="--format")
    backoffice = _backoffice(url, email, state_dir)
    with _opened(file) as (text, position, size), _progress(size, shown=not as_json) as show:

        def progress(summary: Summary) -> None:
            show(position(), summary)

        summary = import_products(
            read(text, known), backoffice, dry_run=dry_run, stop=on_error == "stop", progress=progress
        )
    _report(file, summary, as_json=as_json)
    raise typer.Exit(1 if summary.failed else 0)


def _backoffice(url: str | None, email: str | None, state_dir: Path | None) -> Backoffice:
    if url is None:
        if email is not None:
            raise typer.BadParameter("needs --url", param_hint="--email")
        settings = resolve(state_dir, needs=["link_url", "admin_password"]).settings
        assert settings.admin_password is not None
        return Backoffice(settings.link_url, settings.admin_email, settings.admin_password.get_secret_value())
    if urlsplit(url).scheme not in ("http", "https") or not urlsplit(url).netloc:
        raise typer.BadParameter("not an http or https address", param_hint="--url")
    if email is None:
        raise typer.BadParameter("required with --url", param_hint="--email")
    password = os.environ.get(PASSWORD_VARIABLE)
    if password is None:
        if not sys.stdin.isatty():
            raise typer.BadParameter(
                f"set {PASSWORD_VARIABLE}: there is no terminal to ask for the password", param_hint="--email"
            )
        password = typer.prompt("Password", hide_input=True, err=True)
    return Backoffice(url.rstrip("/"), email, password)


@contextmanager
def _opened(file: str) -> Iterator[tuple[io.TextIOWrapper, Callable[[], int], int | None]]:
    """The text without a byte order mark, a function for the position in bytes, and the size in bytes."""
    try:
        raw = sys.stdin.buffer if file == "-" else Path(file).open("rb")  # noqa: SIM115 - closed below
    except OSError as error:
        raise typer.BadParameter(f"{file}: {error.strerror}", param_hint="FILE") from error
    size = None if file == "-" else os.fstat(raw.fileno()).st_size or None
    text = io.TextIOWrapper(raw, encoding="utf-8-sig", newline="")
    try:
        yield text, (lambda: 0) if file == "-" else raw.tell, size
    except OSError as error:
        raise typer.BadParameter(f"{file}: {error.strerror}", param_hint="FILE") from error
    finally:
        text.detach()
        if file != "-":
            raw.close()


@contextmanager
def _progress(size: int | None, *, shown: bool) -> Iterator[Callable[[int, Summary], None]]:
    """A progress bar on a terminal, nothing in a pipe."""
    console = Console(stderr=True)
    if not shown or not console.is_terminal:
        yield lambda _position, _summary: None
        return
    columns: tuple[Any, ...] = (
        (BarColumn(), TaskProgressColumn(), TimeRemainingColumn()) if size else (MofNCompleteColumn(),)
    )
    with Progress(TextColumn("{task.description}"), *columns, console=console, transient=True) as bar:
        task = bar.add_task("import", total=size)

        def show(position: int, summary: Summary) -> None:
            bar.update(task, completed=position if size else summary.lines, description=f"{summary.lines} lines")

        yield show


def _report(file: str, summary: Summary, *, as_json: bool) -> None:
    if as_json:
        print_json({"file": file, **asdict(summary)})
        return
    for error in summary.errors:
        sku = f"{error['sku']!r}: " if error["sku"] else ""
        print(f"line {error['line']}: {sku}{error['reason']}", file=sys.stderr)
    if summary.errors_left_out:
        print(f"and {summary.errors_left_out} more", file=sys.stderr)
    if summary.failure is not None:
        print(summary.failure, file=sys.stderr)
    verb = "would be " if summary.dry_run else ""
    with contextlib.suppress(BrokenPipeError):
        print(
            f"{verb}created {summary.created}, {verb}updated {summary.updated}, unchanged {summary.unchanged},"
            f" refused {summary.refused}{'; stopped there' if summary.stopped else ''}"
        )
