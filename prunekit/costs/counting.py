"""`prunekit.cost`: what methods cost on a model, from its configuration alone.

The model is laid out on the meta device, where tensors have shapes and no data; the real session and the real policies
run there, under fvcore's tracer. No weights, no images and no accelerator are needed.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from prunekit import conventions
from prunekit.budget import Budget
from prunekit.costs.bench import Bench
from prunekit.costs.decoding import BITS
from prunekit.costs.prompt import make_prompt
from prunekit.costs.requests import amount, named
from prunekit.costs.results import Costs
from prunekit.costs.skeleton import skeleton
from prunekit.errors import ConfigError, CostError, PrunekitError, nearest
from prunekit.plan import Method, Stage
from prunekit.policy import PruningPolicy

__all__ = ["cost"]

Item = str | Method | Stage | PruningPolicy | Sequence[Stage | Method]
"""A method by name (YAML text), a method, a policy, a stage or stages."""

Amount = int | float | str | Budget
"""A number is an average per decoder layer; texts are those of `Budget.parse`, such as `flops=0.3`."""


def cost(
    model: Any,
    *methods: Item,
    budget: Amount | Sequence[Amount] | None = None,
    text_tokens: int = 64,
    images: int = 1,
    image_size: tuple[int, int] | None = None,
    batch: int = 1,
    decode_tokens: int = 0,
    dtype: str = "bfloat16",
    convention: str | None = None,
    unreachable: str = "error",
) -> Costs:
    """Count what methods cost on a model of which only the configuration is there.

    Args:
        model: a preset such as `llava-1.5-7b` (see `prunekit.presets.presets`), `tiny`, a folder with a config.json, a
            hub name whose config is in the local cache, a config, or a model.
        *methods: names such as `"STAR"`, methods, policies, stages, or lists of stages. A policy alone becomes one
            stage: at the input or, where it reads the language model's attention, before its third layer.
        budget: what every method is matched to, or several: average visual tokens per decoder layer as a share or a
            number, or a `prunekit.budget.Budget` (also as text, `flops=0.3`); None: methods as they are configured.
        text_tokens: tokens of a sample that are not visual.
        images: images of each sample.
        image_size: height and width in pixels; by default one that suits the model.
        batch: samples, all alike.
        decode_tokens: tokens generated after the prefill.
        dtype: of the KV cache, for its bytes.
        convention: a name from `prunekit.conventions`: what a paper with that formula would print, beside the count.
        unreachable: `skip` goes on where a method cannot reach a budget, cannot work on this model, or keeps as many
            tokens as the data decide, and says so in `Costs.skipped`.

    Raises:
        CostError: no such prompt, or the number of tokens that a method keeps depends on the data.
        BudgetError: a method cannot reach the budget.
        ConfigError: no such model, method or type.
        CheckpointError: the model's config cannot be read.
        UnsupportedModelError: the model is of no supported family.
        SiteError, NeedsError: a method cannot work on this model.
    """
    if dtype not in BITS:
        raise ConfigError(f"dtype={dtype!r}: allowed are {', '.join(BITS)}.{nearest(str(dtype), BITS)}")
    if unreachable not in ("error", "skip"):
        raise ConfigError(f"unreachable={unreachable!r}: allowed are 'error' and 'skip'.")
    if isinstance(decode_tokens, bool) or not isinstance(decode_tokens, int) or decode_tokens < 0:
        raise CostError(f"decode_tokens={decode_tokens!r}: allowed are whole numbers from 0.")
    rule = None if convention is None else conventions.convention(convention).name
    listed = named(methods)
    bones = skeleton(model)
    bench = Bench(bones.model, decode_tokens, dtype, rule)
    prompt = make_prompt(bones, bench.adapter, text_tokens, images, image_size, batch)
    dense = bench.run("dense", None, (), prompt)
    pruned, skipped = [], []
    budgets = [amount(each) for each in (budget if isinstance(budget, (list, tuple)) else [budget])]
    for name, item in listed:
        for each in budgets:
            where = f"methods.{name}" if each is None else f"methods.{name} at budget {each}"
            try:
                pruned.append(bench.run(name, each, bench.stages(item, each, prompt), prompt))
            except PrunekitError as error:
                if unreachable == "skip":
                    skipped.append({"name": name, "budget": each, "reason": str(error)})
                    continue
                raise type(error)(f"{where}: {error}") from None
    facts = {
        "batch": batch, "images": images, "image_size": list(prompt.size), "text_tokens": text_tokens,
        "visual_tokens": prompt.visual, "decode_tokens": decode_tokens, "dtype": dtype,
    }  # fmt: skip
    parameters = sum(parameter.numel() for parameter in bones.model.parameters())
    return Costs(bones.name, parameters, facts, dense, tuple(pruned), tuple(skipped))
