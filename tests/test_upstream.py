"""The contract with transformers: what the code of its models has to do for prunekit to work.

Everything here is asked of models that no session touches. A failure says what a release of transformers does
differently, which module of prunekit relies on it, and which releases are known to work.
"""

from __future__ import annotations

import ast
import functools
import json
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from catalogue import ATTENTION, FAMILIES, subject
from oracle import Inputs
from packaging.requirements import Requirement
from packaging.version import Version
from torch import Tensor, nn
from transformers.cache_utils import Cache, DynamicCache, DynamicIndexedLayer, DynamicLayer, DynamicSlidingWindowLayer
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS
from transformers.models.auto.configuration_auto import CONFIG_MAPPING_NAMES

from prunekit.adapter import adapter_for
from prunekit.cache import CACHE

ROOT = Path(__file__).resolve().parents[1]
RESULTS = json.loads((ROOT / "benchmarks/results/transformers.json").read_text(encoding="utf-8"))
WORKING = sorted((release for release, result in RESULTS.items() if not result["failed"]), key=Version)

every_family = pytest.mark.parametrize("family", FAMILIES)


def relied_on_by(*modules: str) -> Callable[[object, str], None]:
    """A check of what these modules of prunekit rely on: it fails with what changed, and with what to do."""
    assert all((ROOT / module).is_file() for module in modules), modules

    def require(holds: object, otherwise: str) -> None:
        if not holds:
            what = f"transformers {transformers.__version__} breaks the contract with prunekit: {otherwise}"
            why = f"{what}. This is relied on by {' and '.join(modules)}. prunekit was tested with transformers"
            advice = f"{WORKING[0]} to {WORKING[-1]}: install one of these, or adapt the code and"
            pytest.fail(f"{why} {advice} the range in pyproject.toml.", pytrace=False)

    return require


def prompts(family: str, kind: str = "image") -> Inputs:
    """Two prompts of different lengths, so that masks are needed, and an image or a video in each."""
    images = int(kind == "image")
    return subject(family, "sdpa").make_inputs(batch=2, text=(4, 7), images=images, videos=1 - images)


@torch.no_grad()
def generate(model: Any, inputs: Inputs) -> None:  # a prefill and one decode step
    model.generate(**inputs, max_new_tokens=2, do_sample=False)


@contextmanager
def hooked(*handles: Any) -> Iterator[None]:
    """Take hooks off again."""
    with ExitStack() as stack:
        for handle in handles:
            stack.callback(handle.remove)
        yield


# --- names -----------------------------------------------------------------------------------------------------------


def test_imported_names_exist() -> None:
    """Also those imported inside functions; not those of the tiny models, whose families a release may lack."""
    for path in (path for folder in ("prunekit", "models", "policies") for path in (ROOT / folder).rglob("*.py")):
        nodes = ast.walk(ast.parse(path.read_text(encoding="utf-8"))) if path.parent.name != "builders" else ()
        for node in nodes:
            if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("transformers"):
                absent = [name.name for name in node.names if not hasattr(import_module(str(node.module)), name.name)]
                require = relied_on_by(str(path.relative_to(ROOT)))
                require(not absent, f"{node.module} has no {', '.join(absent)} any more")


def test_the_pinned_release_has_every_family() -> None:
    """In older releases some are skipped; in the one that constraints.txt pins, none may be."""
    lines = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    pins = [Requirement(line) for line in lines if line.startswith("transformers==")]
    pinned = next(pin for pin in pins if pin.marker is None or pin.marker.evaluate())
    if not pinned.specifier.contains(transformers.__version__):
        pytest.skip(f"transformers {transformers.__version__} is not the one in constraints.txt")
    absent = sorted(FAMILIES.keys() - CONFIG_MAPPING_NAMES.keys())
    relied_on_by("tests/catalogue.py")(not absent, f"it has no model type {', '.join(absent)}")


# --- parts of a model ------------------------------------------------------------------------------------------------


@every_family
def test_parts_are_where_the_conventions_say(family: str) -> None:
    require, model = relied_on_by("prunekit/_language.py"), subject(family, "sdpa").dense
    layers = model.get_submodule(FAMILIES[family].decoder_layers)
    text = model.config.get_text_config(decoder=True)
    told = hasattr(text, "num_hidden_layers")
    require(told, "get_text_config(decoder=True) does not return the configuration of the language model")
    lists = [getattr(module, "layers", None) for module in model.get_decoder().modules()]
    lists = [each for each in lists if isinstance(each, nn.ModuleList) and len(each) == text.num_hidden_layers]
    require(lists, f"get_decoder() of {family} has no list `layers` of num_hidden_layers modules")
    require(lists[0] is layers, f"the decoder layers of {family} are elsewhere")
    require(isinstance(model.get_input_embeddings().weight, Tensor), "get_input_embeddings() differs")
    require(isinstance(model.get_output_embeddings(), nn.Module), "get_output_embeddings() differs")


@every_family
def test_decoder_layers_are_called_as_ever(family: str) -> None:
    """With `hidden_states` first, all else by keyword; they return a tensor, or a tuple that starts with one."""
    require, model = relied_on_by("prunekit/_text.py", "prunekit/_decoder.py"), subject(family, "sdpa").dense
    layers, calls = model.get_submodule(FAMILIES[family].decoder_layers), []

    def note(module: nn.Module, args: Any, kwargs: Any, output: Any) -> None:
        calls.append((module, args, kwargs, output))

    inputs = prompts(family)
    with hooked(*(layer.register_forward_hook(note, with_kwargs=True) for layer in layers)):
        generate(model, inputs)
    order = [module for module, *_ in calls]
    require(order == [*layers, *layers], f"decoder layers of {family} do not run once a pass, in order")
    length = inputs["input_ids"].shape[1]
    for number, (_, args, kwargs, output) in enumerate(calls):
        hidden = args[0] if args else kwargs.get("hidden_states")
        who = f"decoder layers of {family}"
        require(len(args) <= 1, f"{who} are given {len(args)} positional arguments instead of one")
        require(isinstance(hidden, Tensor), f"{who} are not given `hidden_states` first or by name")
        require(hidden.ndim == 3, f"{who} are given states of {hidden.ndim} axes instead of 3")
        for name in ("attention_mask", "position_ids", "position_embeddings", CACHE):
            require(name in kwargs, f"{who} are not given `{name}` by keyword")
        cache, mask = kwargs[CACHE], kwargs["attention_mask"]
        require(isinstance(cache, Cache), f"{who} are given a {type(cache).__name__} as cache")
        require(isinstance(mask, Tensor), f"{who} are given a mask of type {type(mask).__name__}")
        keys = length if number < len(layers) else mask.shape[-1]  # in a decode step, a window may have fewer
        require(mask.shape[-2:] == (hidden.shape[1], keys), f"masks for {who} have another shape")
        first = output[0] if isinstance(output, tuple) else output
        require(isinstance(first, Tensor), f"{who} return a {type(output).__name__}")
        require(first.shape == hidden.shape, f"{who} return states of another shape")


# --- images ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["image", "video"])
@every_family
def test_features_are_made_by_one_method(family: str, kind: str) -> None:
    """That of the instance, once a prompt; `generate` hands on what it returns as it is."""
    require, model = relied_on_by("prunekit/_vision.py"), subject(family, "sdpa").dense
    core, name, made, handed = adapter_for(model).core, f"get_{kind}_features", [], []
    if kind == "video" and not (FAMILIES[family].video and hasattr(core, name)):
        return  # no videos, or they are images
    method = getattr(core, name)

    @functools.wraps(method)
    def noting(*args: Any, **kwargs: Any) -> Any:
        made.append(method(*args, **kwargs))
        return made[-1]

    def before(module: nn.Module, args: Any, kwargs: Any) -> None:
        handed.append((kwargs.get("mm_encoder_outputs") or {}).get(kind))

    setattr(core, name, noting)
    try:
        with hooked(core.register_forward_pre_hook(before, with_kwargs=True)), torch.no_grad():
            generate(model, prompts(family, kind))
            once = len(made)
            model(**prompts(family, kind))
    finally:
        delattr(core, name)
    require(once == 1, f"generate of {family} calls {name} {once} times instead of once")
    require(len(made) == 2, f"the forward of {family} does not call the {name} of the instance")
    features = getattr(made[0], "pooler_output", None)
    fine = isinstance(features, (Tensor, tuple, list)) and all(isinstance(each, Tensor) for each in features)
    require(fine, f"{name} of {family} returns no tensors as `pooler_output`")
    handing = f"generate of {family} does not hand what {name} returned to the model as mm_encoder_outputs[{kind!r}]"
    require(handed[0] is made[0], handing)
    require(handed[1:] == [None, None], f"{family} is given {kind}s again while it decodes")


# --- attention -------------------------------------------------------------------------------------------------------


def test_the_mapping_of_attention_functions() -> None:
    require, mapping = relied_on_by("prunekit/attention.py"), ALL_ATTENTION_FUNCTIONS
    for name in ("_local_mapping", "_global_mapping"):
        found = getattr(mapping, name, None)
        require(isinstance(found, dict), f"ALL_ATTENTION_FUNCTIONS has no dictionary {name}")
    require("sdpa" in mapping._global_mapping, "'sdpa' is not among ALL_ATTENTION_FUNCTIONS")


@every_family
@pytest.mark.parametrize("attention", ATTENTION)
def test_attention_is_called_through_the_mapping(family: str, attention: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """As `function(module, query, key, value, mask, scaling=...)`, of the decoder and of the vision encoder."""
    require, model = relied_on_by("prunekit/attention.py"), subject(family, attention).dense
    adapter, calls = adapter_for(model), {}
    tapped = {layer.self_attn: "decoder" for layer in model.get_submodule(FAMILIES[family].decoder_layers)}
    if adapter.vision_layers is not None:
        tapped[adapter.vision_attention(adapter.vision_layers[0])] = "vision encoder"

    def note(module: Any, *tensors: Any, **kwargs: Any) -> Any:
        calls[module] = tensors, kwargs
        own = sys.modules[type(module).__module__].eager_attention_forward
        function = ALL_ATTENTION_FUNCTIONS._global_mapping.get(module.config._attn_implementation, own)
        return function(module, *tensors, **kwargs)

    for module in tapped:
        mapping = getattr(sys.modules[type(module).__module__], "ALL_ATTENTION_FUNCTIONS", ALL_ATTENTION_FUNCTIONS)
        monkeypatch.setitem(mapping._local_mapping, module.config._attn_implementation, note)
    generate(model, prompts(family))
    for module, part in tapped.items():
        who = f"attention of the {part} of {family} under {attention!r}"
        require(module in calls, f"{who} is not called through ALL_ATTENTION_FUNCTIONS")
        (query, key, value, *mask), kwargs = calls[module]
        masked = len(mask) == 1 or "attention_mask" in kwargs
        require(masked, f"{who} is not called as (module, query, key, value, attention_mask)")
        same = query.ndim == 4 and key.shape[-2] == value.shape[-2] and query.shape[-1] == key.shape[-1]
        require(same, f"{who} is not given [batch, heads, length, dim]")
        require("scaling" in kwargs, f"{who} is not given `scaling` by keyword")


# --- the cache -------------------------------------------------------------------------------------------------------

LAYERS: dict[str, Callable[[], DynamicLayer]] = {
    "DynamicLayer": DynamicLayer,
    "DynamicSlidingWindowLayer": lambda: DynamicSlidingWindowLayer(sliding_window=16),
    "DynamicIndexedLayer": DynamicIndexedLayer,
}


@pytest.mark.parametrize("name", LAYERS)
def test_cache_layers(name: str) -> None:
    """They count what they hold, tell mask sizes, and lose their last tokens by a negative number."""
    require, layer = relied_on_by("prunekit/cache.py"), LAYERS[name]()
    states = torch.arange(10.0).view(1, 1, 10, 1).repeat(2, 1, 1, 1)
    require(layer.get_seq_length() == 0, f"an empty {name} does not count 0")
    keys, values = layer.update(states, states)
    require(keys.shape == values.shape == states.shape, f"{name}.update returns something else")
    require(layer.get_seq_length() == 10, f"{name}.get_seq_length() does not count its keys")
    sizes = tuple(layer.get_mask_sizes(3))
    require(sizes == (13, 0), f"{name}.get_mask_sizes(query_length) is {sizes} instead of (13, 0)")
    require(layer.is_sliding == (name == "DynamicSlidingWindowLayer"), f"{name}.is_sliding has another meaning")
    layer.reorder_cache(torch.tensor([1, 0]))
    layer.batch_repeat_interleave(2)
    layer.batch_select_indices(torch.tensor([0, 2, 3]))
    layer.crop(-4)
    require(layer.keys.shape == (3, 1, 6, 1), f"{name} holds {list(layer.keys.shape)} after crop(-4)")
    layer.reset()
    require(layer.get_seq_length() == 0, f"{name}.reset() does not empty it")


def test_caches_make_their_layers() -> None:
    """From `layer_class_to_replicate` as they grow, or all at once from a configuration."""
    require, cache = relied_on_by("prunekit/cache.py", "prunekit/_decoder.py"), DynamicCache()
    require(isinstance(cache.layers, list), "DynamicCache.layers is no list")
    made = cache.layer_class_to_replicate
    require(made is DynamicLayer, f"DynamicCache.layer_class_to_replicate is {made}")
    cache = DynamicCache(config=subject("gemma3", "sdpa").dense.config)
    kinds = {type(layer) for layer in cache.layers}
    require(kinds == {DynamicLayer, DynamicSlidingWindowLayer}, f"DynamicCache makes layers {kinds}")
    sliding = [layer.is_sliding for layer in cache.layers]
    require(list(cache.is_sliding) == sliding, "Cache.is_sliding is no list of its layers' answers")


@every_family
@torch.no_grad()
def test_masks_are_made_from_what_the_cache_says(family: str) -> None:
    """A pruned cache layer says that it holds more than it does; masks and positions follow what it says."""
    require, model = relied_on_by("prunekit/cache.py", "prunekit/_decoder.py"), subject(family, "eager").dense
    inputs = prompts(family)
    cache = model(**inputs, use_cache=True)[CACHE]
    seen = inputs["input_ids"].shape[1] + 5
    found: list[tuple[int, Any]] = []
    for layer in cache.layers:
        layer.get_seq_length = lambda: seen
        layer.get_mask_sizes = lambda query_length: (seen + query_length, 0)

    def cut(module: nn.Module, args: Any, kwargs: Any) -> Any:
        held = cache.layers[len(found)].keys.shape[-2] + 1
        found.append((kwargs["attention_mask"].shape[-1], kwargs["position_ids"]))
        return args, {**kwargs, "attention_mask": kwargs["attention_mask"][..., -held:]}

    layers = model.get_submodule(FAMILIES[family].decoder_layers)
    with hooked(*(layer.register_forward_pre_hook(cut, with_kwargs=True) for layer in layers)):
        model(input_ids=torch.full((2, 1), 20), **{CACHE: cache})
    widths = {width for width, _ in found}
    require(widths == {seen + 1}, f"masks of {family} are not made from get_mask_sizes() of the cache")
    if family == "llava":  # one position a token, counted from what is in the cache
        last = {int(positions.max()) for _, positions in found}
        require(last == {seen}, "positions are not counted from get_seq_length() of the cache")
