"""Paths given by a model lead nowhere but into the workspace."""

from __future__ import annotations

import contextlib
import itertools
import os
import shutil
import threading
import time
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from appliance.tools import files
from appliance.tools.confine import Outside, Workspace

CANARY = "outside-canary"
PARTS = st.sampled_from(
    ["a", "b", "..", ".", "", "link-out", "link-in", "link-abs", "proc", "loop", "file", "a/file"]
)


def make_tree(root: Path) -> Path:
    outside = root / "outside"
    outside.mkdir()
    (outside / "secret").write_text(CANARY)
    (outside / "file").write_text(CANARY)
    inside = root / "inside"
    (inside / "a" / "b").mkdir(parents=True)
    (inside / "file").write_text("inside")
    (inside / "a" / "file").write_text("inside")
    (inside / "link-out").symlink_to("../outside")
    (inside / "link-abs").symlink_to(outside)
    (inside / "link-in").symlink_to("a")
    (inside / "a" / "link-out").symlink_to("../../outside/secret")
    (inside / "proc").symlink_to("/proc/self/root")
    (inside / "loop").symlink_to("loop")
    return inside


@pytest.fixture(scope="module")
def tree(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tree(tmp_path_factory.mktemp("tree"))


@pytest.mark.parametrize("use_openat2", [True, False], ids=["openat2", "walking"])
@given(parts=st.lists(PARTS, min_size=1, max_size=8), is_absolute=st.booleans())
@settings(max_examples=400, deadline=None)
def test_no_path_reads_what_is_outside(
    tree: Path, use_openat2: bool, parts: list[str], is_absolute: bool
) -> None:
    path = "/".join(parts)
    if is_absolute:
        path = f"{tree}/{path}"
    with Workspace(str(tree), use_openat2=use_openat2) as workspace:
        try:
            fd = workspace.open(path, os.O_RDONLY)
        except (Outside, OSError):
            return
        try:
            assert os.readlink(f"/proc/self/fd/{fd}").startswith(str(tree))
        finally:
            os.close(fd)


@pytest.mark.parametrize("use_openat2", [True, False], ids=["openat2", "walking"])
@given(parts=st.lists(PARTS, min_size=1, max_size=6))
@settings(max_examples=200, deadline=None)
def test_no_path_writes_what_is_outside(
    tmp_path_factory: pytest.TempPathFactory, use_openat2: bool, parts: list[str]
) -> None:
    root = tmp_path_factory.mktemp("write")
    inside = make_tree(root)
    with (
        Workspace(str(inside), use_openat2=use_openat2) as workspace,
        contextlib.suppress(files.FileProblem),
    ):
        files.write_file(workspace, "/".join(parts), "overwritten")
    assert {path.name: path.read_text() for path in (root / "outside").iterdir()} == {
        "secret": CANARY,
        "file": CANARY,
    }
    assert {path.name for path in root.iterdir()} == {"inside", "outside"}


def test_links_that_stay_inside_work(tree: Path) -> None:
    with Workspace(str(tree)) as workspace:
        assert files.read_file(workspace, "link-in/file") == b"inside"
        assert files.read_file(workspace, "a/../file") == b"inside"


@pytest.mark.parametrize("path", ["/etc/passwd", "../outside/secret", "link-abs/secret", "a\0b"])
def test_an_escape_is_told_to_the_model_as_not_allowed(tree: Path, path: str) -> None:
    with (
        Workspace(str(tree)) as workspace,
        pytest.raises(files.FileProblem, match="Not allowed"),
    ):
        files.read_file(workspace, path)


def test_policy_holds_where_a_path_really_leads(tree: Path) -> None:
    with Workspace(str(tree), read_only=["a"], hidden=["a/b"]) as workspace:
        assert files.read_file(workspace, "link-in/file") == b"inside"
        with pytest.raises(files.FileProblem, match="read-only"):
            files.write_file(workspace, "link-in/file", "x")
        with pytest.raises(files.FileProblem, match="read-only"):
            files.write_file(workspace, "a/new/file", "x")
        with pytest.raises(files.FileProblem, match="hidden"):
            files.list_files(workspace, "link-in/b")
        assert "a/b" not in files.list_files(workspace)


def test_writing_cuts_a_hard_link_instead_of_following_it(tmp_path: Path) -> None:
    inside = make_tree(tmp_path)
    os.link(tmp_path / "outside" / "secret", inside / "hard")
    with Workspace(str(inside)) as workspace:
        files.write_file(workspace, "hard", "mine")
    assert (tmp_path / "outside" / "secret").read_text() == CANARY
    assert (inside / "hard").read_text() == "mine"


def test_a_pipe_or_device_in_the_workspace_does_not_hold_a_reader_up(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    with (
        Workspace(str(tmp_path)) as workspace,
        pytest.raises(files.FileProblem, match="no ordinary file"),
    ):
        files.read_file(workspace, "pipe")


def test_an_edit_needs_its_text_exactly_once(tmp_path: Path) -> None:
    (tmp_path / "f").write_text("one\ntwo\ntwo\n")
    with Workspace(str(tmp_path)) as workspace:
        with pytest.raises(files.FileProblem, match="stands 2 times"):
            files.edit_file(workspace, "f", "two", "three")
        with pytest.raises(files.FileProblem, match="nearest line is 1: 'one'"):
            files.edit_file(workspace, "f", "onee", "three")
        files.edit_file(workspace, "f", "two", "three", replace_all=True)
    assert (tmp_path / "f").read_text() == "one\nthree\nthree\n"


def test_a_write_keeps_the_mode_of_what_it_replaces(tmp_path: Path) -> None:
    (tmp_path / "run").write_text("old")
    (tmp_path / "run").chmod(0o755)
    with Workspace(str(tmp_path)) as workspace:
        files.write_file(workspace, "run", "new")
    assert (tmp_path / "run").stat().st_mode & 0o777 == 0o755


def move(source: Path, target: Path) -> None:
    """Rename, over a folder that a write made in the moment when there was none of this name."""
    while True:
        try:
            source.rename(target)
        except OSError:
            shutil.rmtree(target, ignore_errors=True)
        else:
            return


def test_a_folder_that_turns_into_a_link_and_back_leads_nowhere(tmp_path: Path) -> None:
    """The race between a look and an open: there is none to win."""
    workspace, outside = tmp_path / "work", tmp_path / "outside"
    for folder in (workspace / "d", outside):
        folder.mkdir(parents=True)
    (workspace / "d" / "f").write_text("inside")
    (outside / "f").write_text("canary")
    (workspace / "l").symlink_to(outside)
    stop = threading.Event()

    def flip() -> None:
        while not stop.is_set():
            for source, target in (("d", "x"), ("l", "d"), ("d", "l"), ("x", "d")):
                move(workspace / source, workspace / target)

    flipping = threading.Thread(target=flip)
    flipping.start()
    seen: set[bytes] = set()
    try:
        with Workspace(str(workspace)) as opened:
            give_up_s = time.monotonic() + 60
            for number in itertools.count():
                if number >= 600 and (
                    {b"inside", b"refused"} <= seen or time.monotonic() > give_up_s
                ):
                    break
                try:
                    seen.add(files.read_file(opened, "d/f"))
                    files.write_file(opened, "d/g", str(number))
                    seen.add(b"wrote")
                except (files.FileProblem, FileNotFoundError):
                    seen.add(b"refused")
    finally:
        stop.set()
        flipping.join()
    assert {b"inside", b"refused"} <= seen <= {b"inside", b"refused", b"wrote"}
    assert [path.name for path in outside.iterdir()] == ["f"]
    assert (outside / "f").read_text() == "canary"


def test_a_name_cannot_make_one_entry_look_like_two(tmp_path: Path) -> None:
    (tmp_path / "a.txt  1\nsecret.txt").touch()
    with Workspace(str(tmp_path)) as workspace:
        assert files.list_files(workspace) == "a.txt  1\\x0asecret.txt  0"
