"""The output folder of a run: made, refused, or taken up again."""

from __future__ import annotations

import datetime
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

from prunekit.errors import OutputError

__all__ = ["dated_folder", "open_folder"]

CONFIG = "config.yaml"
FREE = ("trainer",)
"""Settings that may differ when a run is continued: they change where it runs, not what it finds."""


def dated_folder(name: str, parent: Path = Path("runs")) -> Path:
    """A folder that does not exist yet, named after the time and the experiment."""
    now = datetime.datetime.now().strftime("%Y-%m-%d_%H-%M-%S")
    folder, count = parent / f"{now}-{name}", 1
    while folder.exists():
        count += 1
        folder = parent / f"{now}-{name}-{count}"
    return folder


def open_folder(folder: Path, experiment: dict[str, Any]) -> bool:
    """Make the folder, or check that what it holds is a run of the same experiment.

    Args:
        folder: the output folder.
        experiment: the resolved experiment, written to config.yaml.

    Returns:
        Whether an earlier run is taken up.

    Raises:
        OutputError: the folder cannot be written, or belongs to something else.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        probe = folder / ".writable"
        probe.write_bytes(b"")
        probe.unlink()
    except OSError as error:
        raise OutputError(f"--output {folder}: cannot be written: {error.strerror}.") from None
    config = folder / CONFIG
    if config.exists():
        _compare(folder, config, experiment)
        return True
    if any(folder.iterdir()):
        raise OutputError(f"--output {folder}: holds files, but no run of prunekit; name a new or an empty folder.")
    new = folder / (CONFIG + ".new")
    header = f"# prunekit run {config}\n"
    new.write_text(header + yaml.safe_dump(experiment, sort_keys=False, allow_unicode=True), encoding="utf-8")
    new.replace(config)
    return False


def _compare(folder: Path, config: Path, experiment: dict[str, Any]) -> None:
    try:
        earlier = yaml.safe_load(config.read_text(encoding="utf-8"))
    except (OSError, yaml.YAMLError, UnicodeDecodeError) as error:
        raise OutputError(
            f"--output {folder}: its config.yaml cannot be read: {' '.join(str(error).split())}"
        ) from None
    if not isinstance(earlier, dict):
        raise OutputError(f"--output {folder}: its config.yaml is no experiment; name another folder.")
    kept = {k: v for k, v in experiment.items() if k not in FREE}
    differences = list(_differences({k: v for k, v in earlier.items() if k not in FREE}, kept, ""))
    if differences:
        shown = "; ".join(differences[:8]) + ("; ..." if len(differences) > 8 else "")
        raise OutputError(f"--output {folder}: holds a run of another experiment: {shown}. Name another folder.")


def _differences(old: Any, new: Any, path: str) -> Iterator[str]:
    if isinstance(old, dict) and isinstance(new, dict):
        for key in [*old, *(k for k in new if k not in old)]:
            here = f"{path}.{key}".lstrip(".")
            if key not in new:
                yield f"{here} is there, but not here"
            elif key not in old:
                yield f"{here} is here, but not there"
            else:
                yield from _differences(old[key], new[key], here)
    elif old != new:
        yield f"{path} is {old!r} there and {new!r} here"
