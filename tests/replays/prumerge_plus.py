"""PruMerge+ is PruMerge with an option."""

from replays.prumerge import replay

__all__ = ["replay"]
