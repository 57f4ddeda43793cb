"""One suite over both doors of the edge: each test that uses a door runs once for each."""

from __future__ import annotations

import pytest

from tests.fixtures.fix_edge import DOORS


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "door" in metafunc.fixturenames:
        marker = metafunc.definition.get_closest_marker("doors")
        metafunc.parametrize("door", DOORS if marker is None else marker.args, indirect=True, scope="session")
