"""Sets the amount of fault injection: a little with all other tests, much with ``make faults``, which sums it up.

And a cache folder of the tests' own, which their subprocesses inherit: nothing is written into the user's.
"""

import logging
import os
import tempfile
from collections.abc import Iterator

import pytest

_CACHE = tempfile.TemporaryDirectory(prefix="grcn-tests-")


def pytest_addoption(parser: pytest.Parser) -> None:
    """Adds ``--faults N``, the number of disturbed runs of each kind."""
    parser.addoption("--faults", type=int, default=1, help="disturbed runs of each kind (default: 1)")


def pytest_configure() -> None:
    """Turns the cache away from the user's home, before anything is forked."""
    usual = os.environ.get("XDG_CACHE_HOME", os.path.expanduser("~/.cache"))
    os.environ.setdefault(
        "MPLCONFIGDIR", os.path.join(usual, "matplotlib")
    )  # whose list of fonts takes seconds to make
    os.environ["XDG_CACHE_HOME"] = _CACHE.name


@pytest.fixture(autouse=True)
def messages_of_the_library() -> Iterator[None]:
    """Undoes what a tool that runs in the tests' own process does to the logger, as a program may."""
    logger = logging.getLogger("grcn")
    handlers, propagate, level = logger.handlers, logger.propagate, logger.level
    yield
    logger.handlers, logger.propagate = handlers, propagate
    logger.setLevel(level)


@pytest.fixture(scope="session")
def faults(request: pytest.FixtureRequest) -> int:
    """How many runs of each kind to disturb."""
    return int(request.config.getoption("--faults"))


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    """Prints what the tests recorded as ``faults``, a line each, where there was more than a little."""
    if config.getoption("--faults") > 1:
        for report in terminalreporter.stats.get("passed", []):
            for name, text in report.user_properties:
                if name == "faults":
                    terminalreporter.write_line(text)
