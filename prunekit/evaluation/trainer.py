"""Lightning's Trainer from the experiment's settings, and a test run whose interruptions stay interruptions."""

from __future__ import annotations

import copy
import logging
import signal
import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from jsonargparse import ArgumentError, ArgumentParser
from pytorch_lightning import LightningDataModule, LightningModule, Trainer

from prunekit.errors import ConfigError
from prunekit.evaluation import callbacks  # noqa: F401  (their short names)
from prunekit.evaluation._explain import explain_call

__all__ = ["make_trainer", "test"]

DEFAULTS: dict[str, Any] = {"logger": False, "enable_checkpointing": False, "enable_model_summary": False}


def make_trainer(settings: dict[str, Any]) -> Trainer:
    """Build the Trainer.

    Raises:
        ConfigError: a setting that the Trainer does not have, or that it refuses.
    """
    parser = ArgumentParser(exit_on_error=False)
    parser.add_class_arguments(Trainer, "trainer", instantiate=False, fail_untyped=False)
    try:
        own = copy.deepcopy({**DEFAULTS, **settings})  # the parser writes into what it is given
        parsed = parser.parse_object({"trainer": own})
        arguments = parser.instantiate(parsed)["trainer"]
        with _quiet():
            return Trainer(**vars(arguments))
    except ArgumentError as error:
        sentence = explain_call(settings, Trainer, "trainer") or f"trainer: {' '.join(str(error).split())}"
        raise ConfigError(sentence) from None
    except Exception as error:  # each backend and logger has errors of its own: no device, no such package, ...
        raise ConfigError(f"trainer: {' '.join(str(error).split())}") from error


def test(trainer: Trainer, module: LightningModule, data: LightningDataModule) -> None:
    """`trainer.test`, but Ctrl-C arrives as `KeyboardInterrupt` and works again afterwards.

    Lightning turns it into `SystemExit(1)` and leaves further ones ignored.
    """
    main = threading.current_thread() is threading.main_thread()
    handler = signal.getsignal(signal.SIGINT)
    try:
        with _quiet():
            trainer.test(module, data, verbose=False)
    except SystemExit:
        if trainer.interrupted:
            raise KeyboardInterrupt from None
        raise
    finally:
        if main:
            signal.signal(signal.SIGINT, handler)


@contextmanager
def _quiet() -> Iterator[None]:
    """Without Lightning's notes on devices, tips, and advice on workers for reading data."""
    logger = logging.getLogger("pytorch_lightning.utilities.rank_zero")
    level = logger.level
    logger.setLevel(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", ".*does not have many workers.*")
            warnings.filterwarnings("ignore", ".*DistributedSampler.*")  # doubled answers are dropped when merged
            warnings.filterwarnings("ignore", ".*compute.*was called before.*")  # a process without jobs of a cell
            warnings.filterwarnings("ignore", ".*isinstance.treespec, LeafSpec.*")
            yield
    finally:
        logger.setLevel(level)
