"""Errors that a user can meet, each with a name of its own.

Every message says what was given, what is allowed and, where a word was misspelt, the nearest match. All of them are
`PrunekitError`, which is a `ValueError`; the command line prints the message alone and exits with code 2.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable

__all__ = [
    "BudgetError",
    "CheckpointError",
    "ConfigError",
    "CostError",
    "DataError",
    "MeasurementError",
    "NeedsError",
    "OutputError",
    "PolicyError",
    "PrunekitError",
    "PruningWarning",
    "ScoresError",
    "SessionError",
    "SiteError",
    "UnsupportedCacheError",
    "UnsupportedInputError",
    "UnsupportedModelError",
    "nearest",
]


class PrunekitError(ValueError):
    """Base of all errors that prunekit raises on purpose."""


class BudgetError(PrunekitError):
    """A budget that cannot be met: zero, negative, above the number of tokens, or out of a method's reach."""


class SiteError(PrunekitError):
    """A site that does not exist, or that this model cannot offer."""


class UnsupportedModelError(PrunekitError):
    """A model that cannot be pruned; the message says what it lacks."""


class UnsupportedCacheError(PrunekitError):
    """A KV cache that cannot hold layers of different lengths, or that was pruned elsewhere."""


class UnsupportedInputError(PrunekitError):
    """Inputs that cannot be pruned correctly yet; refused instead of being pruned wrongly."""


class NeedsError(PrunekitError):
    """A policy reads something that this model, site or call does not have."""


class PolicyError(PrunekitError):
    """A policy returned something that is no selection: wrong shape, type, order, range or count."""


class ScoresError(PolicyError):
    """Scores that rank nothing: not finite, or the same for all tokens."""


class SessionError(PrunekitError):
    """A session used in a way that has no meaning: nested on one model, or after its end."""


class ConfigError(PrunekitError):
    """A mistake in a YAML file or on the command line."""


class CostError(PrunekitError):
    """A cost that cannot be told: it depends on the data, or no model, image or prompt can be as asked for."""


class MeasurementError(PrunekitError):
    """A measurement that cannot be made here, or a comparison of what was not measured alike."""


class CheckpointError(PrunekitError):
    """Model files that are missing or damaged."""


class DataError(PrunekitError):
    """A sample, image or data file that is missing or damaged."""


class OutputError(PrunekitError):
    """An output folder that cannot be used for this run."""


class PruningWarning(UserWarning):
    """Something that runs, but without pruning."""


def nearest(word: str, allowed: Iterable[str]) -> str:
    """Return `" Did you mean 'x'?"` for the allowed word nearest to `word`, or an empty string."""
    found = difflib.get_close_matches(str(word), list(allowed), n=1, cutoff=0.5)
    return f" Did you mean {found[0]!r}?" if found else ""
