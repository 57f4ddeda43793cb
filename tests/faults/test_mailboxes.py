"""Letters that a drill has seen: the stack's mailbox removes its oldest ones."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

from faults.mailboxes import Mailboxes


def test_a_letter_counts_after_the_mailbox_has_removed_it(tmp_path: Path) -> None:
    """The mailbox keeps 500 letters, and a minute of orders has more."""
    stage = SimpleNamespace(stack=SimpleNamespace(mail_folder=str(tmp_path)))
    boxes = Mailboxes(cast(Any, stage), cast(Any, None), [])
    for number, notice in enumerate(("first", "second", "second")):
        (tmp_path / f"{number}.eml").write_text(f"Message-ID: <{notice}.1@example.com>\n\nHello\n")
    (tmp_path / "gone.eml").symlink_to(tmp_path / "removed-while-read.eml")
    assert boxes.letters() == {"first": 1, "second": 2}
    (tmp_path / "0.eml").unlink()
    assert boxes.letters() == {"first": 1, "second": 2}
