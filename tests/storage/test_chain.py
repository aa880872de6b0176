"""Where the parents of images are found."""

import os
from pathlib import Path

import pytest

from pyiscsi_target.storage.base import StorageError, StorageFault
from pyiscsi_target.storage.chain import MAX_DEPTH, Chain, ParentPaths, paths_between


@pytest.fixture
def child(tmp_path: Path) -> Path:
    (tmp_path / "vms").mkdir()
    path = tmp_path / "vms" / "child.vhd"
    path.touch()
    return path


def make(path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.touch()
    return path


@pytest.mark.parametrize(
    ("relative", "lies"),
    [
        (".\\parent.vhd", "vms/parent.vhd"),
        ("..\\base\\parent.vhd", "base/parent.vhd"),
        ("deep\\er\\parent.vhd", "vms/deep/er/parent.vhd"),
        ("./parent.vhd", "vms/parent.vhd"),
        ("..\\gone\\parent.vhd", "vms/parent.vhd"),  # at last: beside the child
    ],
)
def test_relative_paths(child: Path, tmp_path: Path, relative: str, lies: str) -> None:
    parent = make(tmp_path / lies)
    assert Chain(child).to_parent(ParentPaths((relative,))).path == parent


def test_relative_comes_before_absolute(child: Path, tmp_path: Path) -> None:
    near, far = make(child.parent / "parent.vhd"), make(tmp_path / "far" / "parent.vhd")
    paths = ParentPaths((".\\parent.vhd",), (str(far),))
    assert Chain(child).to_parent(paths).path == near
    near.unlink()
    assert Chain(child).to_parent(paths).path == far


@pytest.mark.parametrize(
    "absolute",
    ["C:\\Users\\Public\\parent.vhd", "\\\\?\\D:\\parent.vhd", "\\\\server\\share\\parent.vhd"],
)
def test_paths_of_another_host_mean_a_file_beside_the_child(child: Path, absolute: str) -> None:
    parent = make(child.parent / "parent.vhd")
    assert Chain(child).to_parent(ParentPaths((), (absolute,))).path == parent


def test_a_link_to_a_child_leads_to_the_parent_of_the_file(child: Path, tmp_path: Path) -> None:
    parent = make(child.parent / "parent.vhd")
    link = tmp_path / "links" / "disk.vhd"
    link.parent.mkdir()
    link.symlink_to(child)
    assert Chain(link).to_parent(ParentPaths((".\\parent.vhd",))).path == parent


def test_a_missing_parent_is_named_with_all_places(child: Path) -> None:
    with pytest.raises(StorageError, match=r"child\.vhd: its parent 'p\.vhd' is missing") as caught:
        Chain(child).to_parent(ParentPaths(("..\\base\\p.vhd",), ("C:\\vms\\p.vhd",)))
    assert caught.value.fault is StorageFault.MISSING
    assert str(child.parent.parent / "base" / "p.vhd") in str(caught.value)
    assert str(child.parent / "p.vhd") in str(caught.value)


@pytest.mark.parametrize("text", ["", "..", "\\", "x" * 5000, "a\ufffdb", ".\\"])
def test_nonsense_is_a_missing_parent(child: Path, text: str) -> None:
    with pytest.raises(StorageError) as caught:
        Chain(child).to_parent(ParentPaths((text,), (text,)))
    assert caught.value.fault is StorageFault.MISSING


def test_no_path_at_all(child: Path) -> None:
    with pytest.raises(StorageError, match="no path is recorded"):
        Chain(child).to_parent(ParentPaths())


def test_a_child_is_not_its_own_parent(child: Path) -> None:
    """A parent in another folder often has the same name."""
    with pytest.raises(StorageError, match="missing"):
        Chain(child).to_parent(ParentPaths(("..\\base\\child.vhd",)))


def test_a_ring_is_found_under_any_name(child: Path) -> None:
    parent = make(child.parent / "parent.vhd")
    alias = child.parent / "alias.vhd"
    alias.hardlink_to(child)
    chain = Chain(child).to_parent(ParentPaths((parent.name,)))
    with pytest.raises(StorageError, match="is a child of it") as caught:
        chain.to_parent(ParentPaths((alias.name,)))
    assert caught.value.fault is StorageFault.INVALID


def test_chains_end(tmp_path: Path) -> None:
    files = [make(tmp_path / f"{number}.vhd") for number in range(MAX_DEPTH + 1)]
    chain = Chain(files[0])
    for file in files[1:-1]:
        chain = chain.to_parent(ParentPaths((file.name,)))
    assert chain.depth == MAX_DEPTH
    with pytest.raises(StorageError, match="more than 64 files"):
        chain.to_parent(ParentPaths((files[-1].name,)))


@pytest.mark.parametrize(
    ("parent", "relative"),
    [
        ("vms/parent.vhd", ".\\parent.vhd"),
        ("parent.vhd", "..\\parent.vhd"),
        ("base/x y/parent.vhd", "..\\base\\x y\\parent.vhd"),
    ],
)
def test_a_new_child_spells_paths_that_lead_back(
    child: Path, tmp_path: Path, parent: str, relative: str
) -> None:
    path = make(tmp_path / parent)
    paths = paths_between(child, path)
    assert paths == ParentPaths((relative,), (str(path),))
    assert Chain(child).to_parent(paths).path == path


def test_a_name_that_is_no_text_cannot_be_recorded(tmp_path: Path) -> None:
    parent = tmp_path / os.fsdecode(b"\xff.vhdx")
    with pytest.raises(StorageError, match=r"\\xff.vhdx' is no text") as refused:
        paths_between(tmp_path / "child.vhdx", parent)
    assert refused.value.fault is StorageFault.INVALID
