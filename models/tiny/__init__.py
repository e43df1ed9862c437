"""The bundled, genuinely trained tiny LLaVA, and builders of tiny random models.

```python
from prunekit.models import tiny

model, processor = tiny.load()
```
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from prunekit.errors import CheckpointError
from prunekit.models.tiny.builders import tiny_random

__all__ = ["PATH", "load", "tiny_random"]

PATH = Path(__file__).parent / "llava"


def load(
    path: str | Path | None = None, dtype: torch.dtype = torch.float32, attn_implementation: str = "sdpa"
) -> tuple[Any, Any]:
    """Load the bundled model and its processor, offline.

    Args:
        path: another folder of the same kind.
        dtype: of the weights in memory; the file holds float16.
        attn_implementation: `sdpa` or `eager`.

    Raises:
        CheckpointError: files are missing or damaged.
    """
    from transformers import AutoProcessor, LlavaForConditionalGeneration

    folder = Path(path) if path is not None else PATH
    if not (folder / "model.safetensors").is_file():
        raise CheckpointError(f"No model.safetensors in {folder}; train the bundled model with `make train-tiny`.")
    model = LlavaForConditionalGeneration.from_pretrained(
        folder, dtype=dtype, attn_implementation=attn_implementation, local_files_only=True
    )
    return model.eval(), AutoProcessor.from_pretrained(folder, local_files_only=True)
