"""Pruning policies and methods, one a file. A new one is its file, an import here and an entry of `__all__`."""

if __name__ != "prunekit.policies":
    raise ImportError(
        "import prunekit.policies: the top-level folder policies/ is that package, "
        "and a second copy under another name would make a second set of classes"
    )

from prunekit.policies.cross_attention import CrossAttention
from prunekit.policies.fastervlm import FasterVLM
from prunekit.policies.fastv import FastV
from prunekit.policies.random import Random
from prunekit.policies.self_attention import SelfAttention
from prunekit.policies.star import STAR
from prunekit.policies.uniform_grid import UniformGrid

__all__ = ["STAR", "CrossAttention", "FastV", "FasterVLM", "Random", "SelfAttention", "UniformGrid"]
