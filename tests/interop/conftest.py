"""Servers for the interop tests, and the proof that none of them outlives its test."""

import contextlib
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.process import Child
from tests.support.server import Serve, Server, Setup, serving


@pytest.fixture
def serve(tmp_path: Path) -> Iterator[Serve]:
    """Starts servers that drain, with exit status 0, when the test ends."""
    with contextlib.ExitStack() as stack:
        count = 0

        def start(setup: Setup) -> Server:
            nonlocal count
            directory = tmp_path / f"server{count}"
            directory.mkdir()
            count += 1
            return stack.enter_context(serving(setup, directory))

        yield start


@pytest.fixture(autouse=True)
def nothing_left_running() -> Iterator[None]:
    before = set(Child.alive)
    yield
    assert Child.alive <= before, "a child process outlived its test"
