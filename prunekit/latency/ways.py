"""One way to run a model, dense or pruned, and what is measured of it in turn."""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any, Literal

from torch import Tensor, nn

from prunekit.adapter import ModelAdapter
from prunekit.cache import CACHE
from prunekit.latency.timer import Timer
from prunekit.plan import Stage
from prunekit.session import prune

__all__ = ["PARTS", "Way"]

PARTS = ("vision", "language", "prefill", "decode", "generate")
"""What every round measures; `vision` and `language` are inside `prefill`, the time to the first token."""


@dataclass(frozen=True)
class Way:
    """A model with one set of stages.

    Attributes:
        adapter: names of the model's parts.
        stages: what is pruned; none for the dense model.
        positions: as of `prune`.
    """

    adapter: ModelAdapter
    stages: Sequence[Stage] = ()
    positions: Literal["original", "compact"] = "original"

    @contextmanager
    def ready(self) -> Iterator[None]:
        """In a session, opened once for many prompts, so that opening it is not timed."""
        model = self.adapter.model
        with prune(model, *self.stages, positions=self.positions) if self.stages else nullcontext():
            yield

    def prefill(self, inputs: Mapping[str, Tensor]) -> Any:
        """Read a prompt as `generate` does: with a cache, and logits of the last position alone."""
        model = self.adapter.model
        last = {"logits_to_keep": 1} if "logits_to_keep" in inspect.signature(model.forward).parameters else {}
        return model(**inputs, **last, use_cache=True)

    def once(self, inputs: Mapping[str, Tensor], tokens: int, timer: Timer) -> dict[str, float]:
        """Seconds of each of `PARTS` in one run; of `decode` per token, of `vision` only where it is known."""
        with self.ready():
            with _spans(self.adapter, timer) as spans:
                timer.wait()
                start = timer.mark()
                output = self.prefill(inputs)
                spans["prefill"] = [(start, timer.mark())]
                timer.wait()
            spans["decode"] = [self._decode(output, tokens, timer)]
            del output
            start = timer.mark()
            self.generate(inputs, tokens)
            spans["generate"] = [(start, timer.mark())]
            timer.wait()
        found = {part: sum(timer.seconds(*span) for span in spans[part]) for part in PARTS if part in spans}
        return found | {"decode": found["decode"] / tokens}

    def generate(self, inputs: Mapping[str, Tensor], tokens: int) -> Tensor:
        """Decode greedily, as many tokens as asked for, whatever they are."""
        length = {"max_new_tokens": tokens, "min_new_tokens": tokens}
        found: Tensor = self.adapter.model.generate(**inputs, **length, do_sample=False, pad_token_id=0)
        return found

    def _decode(self, output: Any, tokens: int, timer: Timer) -> tuple[Any, Any]:
        """The moments between which tokens are decoded; one before them pays for what is cold."""
        model, cache = self.adapter.model, output[CACHE]
        token = output.logits[:, -1:].argmax(-1)
        start = None
        for step in range(tokens + 1):
            if step == 1:
                timer.wait()
                start = timer.mark()
            token = model(input_ids=token, **{CACHE: cache}).logits[:, -1:].argmax(-1)
        end = timer.mark()
        timer.wait()
        return start, end


@contextmanager
def _spans(adapter: ModelAdapter, timer: Timer) -> Iterator[dict[str, list[tuple[Any, Any]]]]:
    """When the vision encoder and the language model ran, from hooks around all others that a session has placed."""
    spans: dict[str, list[tuple[Any, Any]]] = {}
    with ExitStack() as stack:
        for part, module in (("vision", adapter.vision_tower), ("language", adapter.text_model)):
            if module is not None:
                _watch(module, spans.setdefault(part, []), timer, stack)
        yield spans


def _watch(module: nn.Module, spans: list[tuple[Any, Any]], timer: Timer, stack: ExitStack) -> None:
    started: list[Any] = []

    def enter(module: nn.Module, args: Any) -> None:
        started.append(timer.mark())

    def leave(module: nn.Module, args: Any, output: Any) -> None:
        spans.append((started.pop(), timer.mark()))

    stack.callback(module.register_forward_pre_hook(enter, prepend=True).remove)
    stack.callback(module.register_forward_hook(leave).remove)
