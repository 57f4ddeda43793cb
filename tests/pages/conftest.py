"""The browser belongs to this package alone: it must have ended before the asynchronous tests of the next one begin.

A package's fixture ends with the package only when it is a conftest's of that package; a plugin's would live as long as the run.
"""

from tests.fixtures.fix_browser import chromium, visit

__all__ = ["chromium", "visit"]
