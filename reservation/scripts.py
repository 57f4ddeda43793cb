"""Scripts of the reservation Redis as constants. The contract of each is its header and `docs/redis-layout.md`."""

from __future__ import annotations

from typing import Final

from runtime.redis.scripts import Script, load_script

PACKAGE: Final = "reservation.lua"

RESERVE: Final[Script] = load_script(PACKAGE, "reserve-2-2n")
LOOKUP: Final[Script] = load_script(PACKAGE, "lookup-2-2n")
CANCEL: Final[Script] = load_script(PACKAGE, "cancel-4")
SETTLE: Final[Script] = load_script(PACKAGE, "settle-5")
EXPIRE: Final[Script] = load_script(PACKAGE, "expire-4")
REJECT: Final[Script] = load_script(PACKAGE, "reject-4")
LOAD: Final[Script] = load_script(PACKAGE, "load-1")
DEFINE: Final[Script] = load_script(PACKAGE, "define-1")
RESTOCK: Final[Script] = load_script(PACKAGE, "restock-2")
FORGET: Final[Script] = load_script(PACKAGE, "forget-1")
TRIM: Final[Script] = load_script(PACKAGE, "trim-2")
CLOSE: Final[Script] = load_script(PACKAGE, "close-2")
RESTORE: Final[Script] = load_script(PACKAGE, "restore-2-1n")
REOPEN: Final[Script] = load_script(PACKAGE, "reopen-4")
LEND: Final[Script] = load_script(PACKAGE, "lend-2")
CREDIT: Final[Script] = load_script(PACKAGE, "credit-2")
CLEAR: Final[Script] = load_script(PACKAGE, "clear-2")
LEFT: Final[Script] = load_script(PACKAGE, "left-1")
