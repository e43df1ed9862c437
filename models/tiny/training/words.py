"""The model's vocabulary and its prompt."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from prunekit.scenes import VOCABULARY

PAD, BOS, EOS, UNKNOWN, IMAGE, USER, ASSISTANT = (
    "<pad>",
    "<s>",
    "</s>",
    "<unk>",
    "<image>",
    "USER:",
    "ASSISTANT:",
)
WORDS: tuple[str, ...] = (PAD, BOS, EOS, UNKNOWN, IMAGE, USER, ASSISTANT, *VOCABULARY)
TOKEN: dict[str, int] = {word: number for number, word in enumerate(WORDS)}
VOCABULARY_SIZE = 64
QUESTION_LENGTH = 7


def prompt(question: str) -> str:
    """What the processor is given; it turns `<image>` into 144 tokens and puts `<s>` in front."""
    return f"{USER} {IMAGE} {question} {ASSISTANT}"


def encode(text: str) -> NDArray[np.uint8]:
    """Token ids of a question."""
    ids = np.array([TOKEN[word] for word in text.split()], np.uint8)
    if len(ids) != QUESTION_LENGTH:
        raise ValueError(f"questions have {QUESTION_LENGTH} words: {text!r}")
    return ids
