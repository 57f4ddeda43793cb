"""Browser fixtures of this package: the browser must end before the asynchronous tests of the next package begin.

A fixture of package scope ends with the package only if a conftest of that package defines it.
"""

from __future__ import annotations

import pytest

from tests.fixtures.fix_browser import chromium, visit
from tests.fixtures.fix_stack import RunningStack
from tests.pages.scenes import Shopkeeper

__all__ = ["chromium", "keeper", "visit"]


@pytest.fixture(scope="package")
def keeper(running_stack: RunningStack) -> Shopkeeper:
    return Shopkeeper(running_stack.stack)
