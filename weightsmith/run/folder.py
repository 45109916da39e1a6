"""One folder a run: what it was asked, on what machine, what happened, and every result."""

from __future__ import annotations

import json
import logging
import os
import platform
import shutil
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from weightsmith import ranks
from weightsmith.errors import WeightsmithError, did_you_mean
from weightsmith.files import cause_of, explained, remove, remove_leftovers, user_path, write_json, write_text
from weightsmith.run.options.correct import STAGE_NAMES, RunOptions
from weightsmith.run.options.files import to_yaml
from weightsmith.run.options.folder import FolderOptions

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class RunFolder:
    """Where a run's files lie.

    Attributes:
        path: the folder itself; results, checkpoints and log are in it unless the user named other places.
        results, checkpoints, logs: where tables and figures, training checkpoints and the log go.
    """

    path: Path
    results: Path
    checkpoints: Path
    logs: Path

    @classmethod
    def named(cls, options: FolderOptions, name: str) -> RunFolder:
        path = user_path(options.runs_dir) / name

        def place(chosen: str | None, default: Path) -> Path:
            return user_path(chosen) / name if chosen else default

        return cls(
            path,
            results=place(options.results_dir, path),
            checkpoints=place(options.checkpoint_dir, path / "checkpoints"),
            logs=place(options.log_dir, path),
        )

    @property
    def figures(self) -> Path:
        return self.results / "figures"

    @contextmanager
    def in_use(self, remedy: str = "wait for it, or give another --run-name") -> Iterator[None]:
        """Keep other processes out of this run, and remove what a killed one left half-written.

        Raises:
            WeightsmithError: another process is in it; with the remedy.
        """
        with explained(self.path):
            self.path.mkdir(parents=True, exist_ok=True)
        lock = FileLock(self.path / ".lock")
        try:
            with explained(self.path / ".lock"):
                lock.acquire(timeout=0)
        except Timeout as error:
            raise WeightsmithError(f"another process is working on {self.path}: {remedy}") from error
        try:
            remove_leftovers(self.path)
            yield
        finally:
            lock.release()

    @contextmanager
    def logged(self) -> Iterator[None]:
        """Write the library's log to `log.txt` as well while the block runs."""
        with explained(self.logs):
            self.logs.mkdir(parents=True, exist_ok=True)
            handler = _LogFile(self.logs / "log.txt", encoding="utf-8")
        handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(name)s: %(message)s"))
        root = logging.getLogger("weightsmith")
        root.addHandler(handler)
        try:
            yield
        finally:
            root.removeHandler(handler)
            handler.close()

    def write_config(self, options: FolderOptions) -> None:
        """`config.yaml`: the resolved options."""
        write_text(self.path / "config.yaml", to_yaml(options))

    def config_text(self) -> str | None:
        """What `config.yaml` holds now, None where there is none."""
        path = self.path / "config.yaml"
        try:
            return path.read_text(encoding="utf-8") if path.exists() else None
        except (OSError, UnicodeDecodeError) as error:
            raise WeightsmithError(
                f"{path} cannot be read ({cause_of(error)}): move it away, or give another --run-name"
            ) from error

    def restore_config(self, text: str | None) -> None:
        """Put an earlier `config.yaml` back; a first one that was refused stays, it is what the run was asked."""
        if text is not None:
            write_text(self.path / "config.yaml", text)

    def write_env(self, **more: Any) -> None:
        """`env.json`: versions, commit, machine, threads, and whatever the caller knows (device, hashes)."""
        write_json(self.path / "env.json", self.env() | environment() | more)

    def env(self) -> dict[str, Any]:
        return _entries(self.path / "env.json")

    def log_event(self, stage: str, event: str, **more: Any) -> None:
        """Append one line to `events.jsonl`."""
        line = {"time": datetime.now(UTC).isoformat(timespec="seconds"), "stage": stage, "event": event, **more}
        path = self.path / "events.jsonl"
        with explained(path), path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(line) + "\n")
            file.flush()
            os.fsync(file.fileno())

    def events(self) -> list[dict[str, Any]]:
        """Every event; a line that a kill cut off is left out."""
        path = self.path / "events.jsonl"
        found: list[dict[str, Any]] = []
        if path.exists():
            for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
                try:
                    event = json.loads(line)
                except ValueError:
                    event = None
                if isinstance(event, dict):
                    found.append(event)
                else:
                    _log.warning("%s: a line that was cut off is left out", path)
        return found

    def done(self, stage: str) -> str | None:
        """The fingerprint with which a stage was last finished, None when it was not or was started again since."""
        key: str | None = None
        for event in self.events():
            if event.get("stage") == stage:
                key = event.get("key") if event.get("event") == "done" else None
        return key

    def note(self, stage: str, text: str) -> None:
        """Keep a sentence that a stage had to say, once, for the report."""
        notes = self._notes()
        if text not in notes.setdefault(stage, []):
            notes[stage].append(text)
            write_json(self.results / "notes.json", notes)

    def notes(self) -> tuple[str, ...]:
        """What the stages had to say, in their order."""
        notes = self._notes()
        return tuple(dict.fromkeys(note for stage in STAGE_NAMES for note in notes.get(stage, [])))

    def forget_notes(self, stage: str) -> None:
        """Drop what a stage said, because it is redone."""
        notes = self._notes()
        if notes.pop(stage, None) is not None:
            write_json(self.results / "notes.json", notes)

    def _notes(self) -> dict[str, list[str]]:
        return _entries(self.results / "notes.json")

    def discard(self) -> None:
        """Remove a run that has come to nothing; what others put into the folders that the user named stays."""
        remove(self.path)
        remove(self.logs / "log.txt")
        for place in (self.results, self.checkpoints, self.logs):
            if place.is_dir() and not any(place.iterdir()):
                place.rmdir()

    @contextmanager
    def set_aside(self, paths: Sequence[Path]) -> Iterator[None]:
        """Move files away while the block makes new ones: back when it fails, for good when it ends well.

        After a kill they wait in `.replaced`, from which `recover` takes them.
        """
        moved = {self._aside / str(number): path for number, path in enumerate(paths) if path.exists()}
        if moved:
            with explained(self._aside):
                self._aside.mkdir()
            write_json(self._aside / "paths.json", {place.name: str(path) for place, path in moved.items()})
            for place, path in moved.items():
                os.replace(path, place)
        try:
            yield
        except BaseException:
            self.recover()
            raise
        self.remove(self._aside)

    def recover(self) -> None:
        """Put back what `set_aside` moved away in a process that did not end."""
        record = self._aside / "paths.json"
        if record.exists():
            for name, path in json.loads(record.read_text(encoding="utf-8")).items():
                if (self._aside / name).exists():
                    self.remove(Path(path))
                    os.replace(self._aside / name, path)
        self.remove(self._aside)

    @property
    def _aside(self) -> Path:
        return self.path / ".replaced"

    def remove(self, *paths: Path) -> None:
        """Remove results of a stage that is redone."""
        for path in paths:
            remove(path)


class _LogFile(logging.FileHandler):
    """A log whose disk may be full: lines that find no room are lost, and nobody is shown a traceback for them."""

    def handleError(self, record: logging.LogRecord) -> None:  # noqa: N802  (logging calls it so)
        if not isinstance(sys.exc_info()[1], OSError):
            super().handleError(record)

    def close(self) -> None:
        with suppress(OSError):  # what waits to be written is tried once more
            super().close()


def _entries(path: Path) -> dict[str, Any]:
    """What a record of ours holds, nothing where there is none."""
    if not path.exists():
        return {}
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        found = None
    if not isinstance(found, dict):
        raise WeightsmithError(f"{path} is damaged: delete it, it is written anew")
    return found


def new_name(options: FolderOptions, stem: str) -> str:
    """A folder name for this run: the user's or `stem`, with the time when asked, numbered when the stem is taken."""
    name = options.run_name or stem
    if not name or name.startswith(".") or any(sign in name for sign in "/\\\0"):
        raise WeightsmithError(f"--run-name {name!r} cannot be a folder's name: give a name without slashes")
    if options.timestamp:
        name += datetime.now().strftime("-%Y%m%d-%H%M%S")
    if options.run_name is None:
        root, base, number = user_path(options.runs_dir), name, 2
        while (root / name).exists():
            name, number = f"{base}-{number}", number + 1
    return name


def existing_runs(runs_dir: str) -> list[str]:
    """Names of the run folders, newest first."""
    root = user_path(runs_dir)
    folders = [path.parent for path in root.glob("*/config.yaml")] if root.is_dir() else []
    return [path.name for path in sorted(folders, key=lambda path: -path.stat().st_mtime)]


def require_run(options: RunOptions) -> str:
    """The name of the existing run that a single stage works on. Raises `WeightsmithError` naming the runs there are."""
    runs = existing_runs(options.runs_dir)
    if options.run_name is None:
        listing = f"runs there are: {', '.join(runs[:8])}" if runs else f"there are none in {options.runs_dir} yet"
        raise WeightsmithError(f"--stage {options.stage} works on an existing run: name it with --run-name ({listing})")
    if options.run_name not in runs:
        raise WeightsmithError(
            f"--run-name {options.run_name} names no run in {options.runs_dir}: "
            + (did_you_mean(options.run_name, runs) if runs else "run --stage data first")
        )
    return options.run_name


def environment() -> dict[str, Any]:
    """Versions, machine and threads; results are bit-identical only at equal thread counts."""
    import torch

    packages = ("weightsmith", "torch", "transformers", "safetensors", "numpy", "scikit-learn")
    return {
        "python": platform.python_version(),
        "platform": f"{platform.system()} {platform.machine()}, {os.cpu_count()} cores",
        "packages": {name: _version(name) for name in packages},
        "commit": _commit(),
        "threads": torch.get_num_threads(),
        "processes": ranks.world(),
        "cuda": torch.version.cuda if torch.cuda.is_available() else None,
    }


def _version(package: str) -> str | None:
    """None for weightsmith itself where its folder lies on the path and was never installed."""
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def _commit() -> str | None:
    """The commit of the checkout that weightsmith runs from, None when it was installed."""
    git = shutil.which("git")
    if git is None:
        return None
    here = Path(__file__).resolve().parent
    answer = subprocess.run(  # noqa: S603  (a fixed command)
        [git, "-C", str(here), "rev-parse", "--show-toplevel", "HEAD"],
        capture_output=True,
        text=True,
        check=False,
        timeout=10,
    )
    lines = answer.stdout.split()
    # An installed package can lie inside somebody else's repository, whose commit says nothing.
    ours = answer.returncode == 0 and len(lines) == 2 and Path(lines[0]) == here.parent.parent
    return lines[1] if ours else None
