"""Pruning policies and methods, one a file. A new one is its file, an import here and an entry of `__all__`."""

if __name__ != "prunekit.policies":
    raise ImportError(
        "import prunekit.policies: the top-level folder policies/ is that package, "
        "and a second copy under another name would make a second set of classes"
    )

from prunekit.policies.average_pooling import AveragePooling
from prunekit.policies.bipartite_matching import BipartiteMatching
from prunekit.policies.cdpruner import CDPruner
from prunekit.policies.cls_similarity import ClsSimilarity
from prunekit.policies.conditional_diversity import ConditionalDiversity
from prunekit.policies.coverage import Coverage
from prunekit.policies.cross_attention import CrossAttention
from prunekit.policies.dart import DART
from prunekit.policies.diversity import Diversity
from prunekit.policies.divprune import DivPrune
from prunekit.policies.downsampling import Downsampling
from prunekit.policies.duplication import Duplication
from prunekit.policies.fastervlm import FasterVLM
from prunekit.policies.fastv import FastV
from prunekit.policies.fitprune import FitPrune
from prunekit.policies.flowcut import FlowCut
from prunekit.policies.hired import HiRED
from prunekit.policies.holov import HoloV
from prunekit.policies.invert import Invert
from prunekit.policies.joint_attention import JointAttention
from prunekit.policies.key_norm import KeyNorm
from prunekit.policies.mix import Mix
from prunekit.policies.mustdrop import MustDrop
from prunekit.policies.norm import Norm
from prunekit.policies.optimal_transport import OptimalTransport
from prunekit.policies.oracle import Oracle
from prunekit.policies.per_image import PerImage
from prunekit.policies.protect import Protect
from prunekit.policies.prumerge import PruMerge
from prunekit.policies.pyramiddrop import PyramidDrop
from prunekit.policies.random import Random
from prunekit.policies.scope import SCOPE
from prunekit.policies.self_attention import SelfAttention
from prunekit.policies.sequential import Sequential
from prunekit.policies.sparsevlm import SparseVLM
from prunekit.policies.spatial_quota import SpatialQuota
from prunekit.policies.star import STAR
from prunekit.policies.text_relevance import TextRelevance
from prunekit.policies.tome import ToMe
from prunekit.policies.topv import TopV
from prunekit.policies.uniform_grid import UniformGrid
from prunekit.policies.union import Union
from prunekit.policies.visionzip import VisionZip
from prunekit.policies.vispruner import VisPruner
from prunekit.policies.vscan import VScan
from prunekit.policies.vtw import VTW

__all__ = [
    "DART",
    "SCOPE",
    "STAR",
    "VTW",
    "AveragePooling",
    "BipartiteMatching",
    "CDPruner",
    "ClsSimilarity",
    "ConditionalDiversity",
    "Coverage",
    "CrossAttention",
    "DivPrune",
    "Diversity",
    "Downsampling",
    "Duplication",
    "FastV",
    "FasterVLM",
    "FitPrune",
    "FlowCut",
    "HiRED",
    "HoloV",
    "Invert",
    "JointAttention",
    "KeyNorm",
    "Mix",
    "MustDrop",
    "Norm",
    "OptimalTransport",
    "Oracle",
    "PerImage",
    "Protect",
    "PruMerge",
    "PyramidDrop",
    "Random",
    "SelfAttention",
    "Sequential",
    "SparseVLM",
    "SpatialQuota",
    "TextRelevance",
    "ToMe",
    "TopV",
    "UniformGrid",
    "Union",
    "VScan",
    "VisPruner",
    "VisionZip",
]
