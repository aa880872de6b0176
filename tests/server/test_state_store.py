"""Documents across crashes and damage: at every step either the old or the new one is there."""

import json
import os
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from pyiscsi_target.server import state_store
from pyiscsi_target.server.state_store import StateError, StateStore

FIRST, SECOND, THIRD = ({"generation": n, "keys": {"b": [1], "a": None}} for n in (1, 2, 3))


@pytest.fixture
def store(tmp_path: Path) -> Iterator[StateStore]:
    opened = StateStore(tmp_path / "deep" / "state")
    yield opened
    opened.close()


def test_nothing_saved_is_none(store: StateStore) -> None:
    assert store.load("identities") is None


def test_what_was_saved_comes_back(store: StateStore) -> None:
    store.save("identities", FIRST)
    store.save("other", THIRD)
    store.save("identities", SECOND)
    assert store.load("identities") == SECOND
    assert store.load("other") == THIRD


@pytest.mark.skipif(os.name != "posix", reason="permission bits are POSIX")
def test_only_the_owner_may_look(store: StateStore) -> None:
    store.save("identities", FIRST)
    assert stat.S_IMODE(store.directory.stat().st_mode) == 0o700
    assert {stat.S_IMODE(file.stat().st_mode) for file in store.directory.iterdir()} == {0o600}


@pytest.mark.parametrize(
    "damage", ["flip", "truncate", "empty", "remove", "not-json", "deep", "version"]
)
def test_damage_falls_back_to_the_previous_generation_and_says_so(
    store: StateStore, damage: str, caplog: pytest.LogCaptureFixture
) -> None:
    store.save("identities", FIRST)
    store.save("identities", SECOND)
    _damage(store.directory / "identities.json", damage)
    assert store.load("identities") == FIRST
    assert [(r.levelname, r.getMessage()) for r in caplog.records] == [("ERROR", "state_fallback")]


def _damage(path: Path, how: str) -> None:
    content = path.read_bytes()
    if how == "remove":
        path.unlink()
        return
    path.write_bytes(
        {
            "flip": content.replace(b'"generation": 2', b'"generation": 7'),
            "truncate": content[: len(content) // 2],
            "empty": b"",
            "not-json": b"\xff\x00",
            "deep": b"[" * 100_000,
            "version": json.dumps({**json.loads(content), "format": 99}).encode(),
        }[how]
    )


def test_a_damaged_file_does_not_push_out_the_good_one(store: StateStore) -> None:
    store.save("identities", FIRST)
    store.save("identities", SECOND)
    _damage(store.directory / "identities.json", "flip")
    store.save("identities", THIRD)
    _damage(store.directory / "identities.json", "truncate")
    assert store.load("identities") == FIRST


def test_when_all_is_damaged_it_does_not_pretend_that_nothing_was_there(store: StateStore) -> None:
    store.save("identities", FIRST)
    _damage(store.directory / "identities.json", "truncate")
    with pytest.raises(StateError, match=r"identities\.json"):
        store.load("identities")


class Crash(BaseException):
    """The power goes off: nothing after it runs, no handler catches it."""


@pytest.mark.parametrize("step", range(6))
def test_a_crash_at_any_step_leaves_the_old_or_the_new(
    store: StateStore, monkeypatch: pytest.MonkeyPatch, step: int
) -> None:
    store.save("identities", FIRST)
    store.save("identities", SECOND)
    steps = 0

    def counted(call: Any) -> Any:
        def run(*args: Any, **kwargs: Any) -> Any:
            nonlocal steps
            steps += 1
            if steps > step:
                raise Crash
            return call(*args, **kwargs)

        return run

    with monkeypatch.context() as patch:
        patch.setattr(os, "open", counted(os.open))
        patch.setattr(os, "fsync", counted(os.fsync))
        patch.setattr(Path, "replace", counted(Path.replace))
        with pytest.raises(Crash):
            store.save("identities", THIRD)
    assert store.load("identities") in (SECOND, THIRD)
    store.save("identities", FIRST)
    assert store.load("identities") == FIRST


def test_the_file_is_on_the_medium_before_it_gets_its_name(
    store: StateStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[str] = []
    fsync, replace = os.fsync, Path.replace

    def noted_fsync(descriptor: int) -> None:
        calls.append("directory" if stat.S_ISDIR(os.fstat(descriptor).st_mode) else "file")
        fsync(descriptor)

    def noted_replace(source: Path, target: Path) -> Path:
        calls.append(f"rename to {target.name}")
        return replace(source, target)

    monkeypatch.setattr(os, "fsync", noted_fsync)
    monkeypatch.setattr(Path, "replace", noted_replace)
    store.save("a", FIRST)
    store.save("a", SECOND)
    first = ["file", "rename to a.json", "directory"]
    assert calls == [*first, "file", "rename to a.json.1", *first[1:]]


def test_a_save_that_fails_leaves_what_was(
    store: StateStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    store.save("identities", FIRST)

    def full(_descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        with pytest.raises(StateError, match="No space left"):
            store.save("identities", SECOND)
    assert store.load("identities") == FIRST


@pytest.mark.parametrize("before", [[], [FIRST], [FIRST, SECOND]])
@pytest.mark.parametrize("step", range(5))
def test_a_save_that_fails_at_any_step_did_not_happen(
    store: StateStore,
    monkeypatch: pytest.MonkeyPatch,
    before: list[Any],
    step: int,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """Though the file may have its name already: what was refused is not there after a restart."""
    for document in before:
        store.save("identities", document)
    steps = 0

    def counted(call: Any) -> Any:
        def run(*args: Any, **kwargs: Any) -> Any:
            nonlocal steps
            steps += 1
            if steps == step + 1:
                raise OSError(5, "Input/output error")
            return call(*args, **kwargs)

        return run

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", counted(os.fsync))
        patch.setattr(Path, "replace", counted(Path.replace))
        try:
            store.save("identities", THIRD)
        except StateError:
            expected = before[-1] if before else None
        else:
            assert step >= (4 if before else 3)  # the steps end before
            expected = THIRD
    assert store.load("identities") == expected
    assert not caplog.records, "the last generation stands, not one to fall back to"
    assert not list(store.directory.glob("*.tmp"))
    store.save("identities", THIRD)
    assert store.load("identities") == THIRD


def test_a_failed_save_after_a_crash_leaves_the_previous_generation(
    store: StateStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The crash came between the two renames, so there is no last generation."""
    store.save("identities", FIRST)
    store.save("identities", SECOND)
    (store.directory / "identities.json").unlink()

    def fail(_directory: Path) -> None:
        raise OSError(5, "Input/output error")

    with monkeypatch.context() as patch:
        patch.setattr(state_store, "sync_directory", fail)
        with pytest.raises(StateError):
            store.save("identities", THIRD)
    assert store.load("identities") == FIRST


def test_a_save_that_fails_leaves_damage_as_it_was(
    store: StateStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What cannot be read must not turn into what never was."""
    store.save("identities", FIRST)
    _damage(store.directory / "identities.json", "truncate")

    def fail(_source: Path, _target: Path) -> None:
        raise OSError(5, "Input/output error")

    with monkeypatch.context() as patch:
        patch.setattr(Path, "replace", fail)
        with pytest.raises(StateError):
            store.save("identities", SECOND)
    with pytest.raises(StateError, match="no generation"):
        store.load("identities")


@pytest.mark.skipif(os.name != "posix", reason="directories are synced on POSIX")
def test_a_new_directory_is_on_the_medium_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    synced: list[int] = []
    fsync = os.fsync

    def noted(descriptor: int) -> None:
        synced.append(os.fstat(descriptor).st_ino)
        fsync(descriptor)

    monkeypatch.setattr(os, "fsync", noted)
    StateStore(tmp_path / "deep" / "state").close()
    assert set(synced) == {tmp_path.stat().st_ino, (tmp_path / "deep").stat().st_ino}
    StateStore(tmp_path / "deep" / "state").close()
    assert len(synced) == 2


@pytest.mark.skipif(os.name != "posix", reason="no advisory locks here")
def test_a_directory_belongs_to_one_server(tmp_path: Path) -> None:
    first = StateStore(tmp_path)
    with pytest.raises(StateError, match="another server"):
        StateStore(tmp_path)
    first.close()
    first.close()
    StateStore(tmp_path).close()


def test_without_advisory_locks_it_works_unlocked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(state_store, "fcntl", None)
    store = StateStore(tmp_path)
    store.save("a", FIRST)
    assert store.load("a") == FIRST
    store.close()


def test_a_directory_that_cannot_be_made(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(StateError, match="state_dir"):
        StateStore(tmp_path / "file" / "state")
