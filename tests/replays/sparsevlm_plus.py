"""SparseVLM+ is SparseVLM with an option."""

from replays.sparsevlm_v1 import replay

__all__ = ["replay"]
