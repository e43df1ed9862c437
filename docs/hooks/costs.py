"""What methods cost on released models, and where the sizes of these models are from."""

from __future__ import annotations

import json
from typing import Any

from page_parts import ROOT, script
from page_parts import table as rows_of

from prunekit.presets import presets

STORED = ROOT / "benchmarks" / "results" / "costs" / "costs.json"


def _stored() -> dict[str, Any]:
    return dict(json.loads(STORED.read_text(encoding="utf-8"))) if STORED.is_file() else {"models": {}}


def table() -> str:
    """The stored run of `benchmarks/cost_table.py`."""
    stored = _stored()
    if not stored["models"]:
        return (
            "No results are stored in this checkout. `python benchmarks/cost_table.py` produces them, in some minutes."
        )
    return str(script("benchmarks/cost_table.py").section(stored))


def models() -> str:
    """All presets, with the parameters and visual tokens that were counted."""
    counted = _stored()["models"]
    head = ["Preset", "Made of", "Parameters, published", "Parameters, counted", "Image", "Visual tokens"]
    rows = []
    for name, each in presets().items():
        found = counted.get(name, {})
        height, width = each.image["default"]
        number = f"{found['parameters']:,}" if found else ""
        visual = str(found["prompt"]["visual_tokens"]) if found else ""
        preset = f"`{name}`: [{each.hub}](https://huggingface.co/{each.hub})"
        rows.append([preset, each.about, f"{each.parameters:.2f} B", number, f"{height}x{width}", visual])
    return rows_of(head, rows)


def sources() -> str:
    """What confirms the sizes of each."""
    return "\n".join(f"- `{name}`. {each.source}" for name, each in presets().items())
