"""The model card: every number goes into `card.json`, and `README.md` is rendered from it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch

from prunekit import provenance
from prunekit.models.tiny.training.card_text import TEXT
from prunekit.scenes import FAMILIES

Card = dict[str, Any]


def hardware() -> dict[str, Any]:
    """Processor and versions; the weights are trained without a GPU."""
    machine, numbers, info = provenance.hardware(torch.device("cpu")), provenance.versions(), Path("/proc/cpuinfo")
    bf16 = info.exists() and "amx_bf16" in info.read_text()
    return {
        "processor": machine["processor"] + (" with AMX bf16" if bf16 else ""),
        "cores": machine["cores"],
        "gpu": None,
        **{name: numbers[name] for name in ("python", "torch", "transformers", "numpy")},
    }


def _cell(value: dict[str, float]) -> str:
    return f"{value['mean']:.1f} [{value['low']:.1f}, {value['high']:.1f}]"


def _table(header: list[str], rows: list[list[str]]) -> str:
    lines = ["| " + " | ".join(header) + " |", "|" + " --- |" * len(header)]
    return "\n".join(lines + ["| " + " | ".join(row) + " |" for row in rows])


def _accuracy(card: Card) -> str:
    seeds = card["seeds"]
    header = ["family", *(f"seed {s}" for s in seeds), "gray image", "other image", "prior"]
    rows = []
    for family in ("all", *FAMILIES):
        cells = [_cell(seeds[s]["test"][family]) for s in seeds]
        controls = [_cell(card["blind"][name][family]) for name in ("gray_image", "other_image", "prior")]
        name = "**all**" if family == "all" else f"`{family}`"
        rows.append([name, *cells, *controls])
    return _table(header, rows)


def _subsets(card: Card) -> str:
    names = {
        "language": "all tokens only, before the last stage",
        "control": "control: last stage without dropout",
        "dropout": "last stage with dropout",
    }
    shares = list(next(iter(card["seeds"].values()))["subsets"]["dropout"])
    rows = [
        [seed, text, *(_cell(entry["subsets"][stage][share]) for share in shares)]
        for seed, entry in card["seeds"].items()
        for stage, text in names.items()
    ]
    return _table(["seed", "trained with", *(f"{float(s) * 100:g} % kept" for s in shares)], rows)


def _objects(card: Card) -> str:
    names = {"control": "without dropout", "dropout": "with dropout"}
    header = ["family"]
    columns = []
    for seed, entry in card["seeds"].items():
        for stage, text in names.items():
            for share, values in entry["objects_first"][stage].items():
                header.append(f"seed {seed}, {text}, {float(share) * 100:g} %")
                columns.append(values)
    rows = [[family, *(f"{values[family]['mean']:.1f}" for values in columns)] for family in ("all", *FAMILIES)]
    return _table(header, rows)


def _stages(card: Card) -> str:
    rows = []
    for seed, entry in card["seeds"].items():
        for stage, record in entry["stages"].items():
            final = {k: v for k, v in record["curve"][-1].items() if k not in ("step", "loss")}
            if "accuracy" in final:
                result = f"accuracy {final['accuracy'] * 100:.1f}"
            else:
                result = ", ".join(f"{k.replace('_', ' ')} {v * 100:.1f}" for k, v in final.items())
            steps = f"{record['steps']:,} x {record['batch']}"
            rows.append([seed, stage, steps, f"{record['wall_seconds']} s", f"{record['cpu_seconds']} s", result])
    return _table(["seed", "stage", "steps x images", "wall", "CPU", "development result (%)"], rows)


def _seconds(card: Card, kind: str) -> list[int]:
    return [sum(stage[kind] for stage in entry["stages"].values()) for entry in card["seeds"].values()]


def render(card: Card) -> str:
    """The README of the model folder."""
    recipe, machine = card["recipe"], card["hardware"]
    values = {
        **recipe,
        **{f"n_{k}": f"{recipe[k]:,}" for k in ("scenes", "crowded", "test_scenes", "select_scenes")},
        "questions": f"{recipe['test_scenes'] * len(FAMILIES):,}",
        "parameters": f"{card['parameters']:,}",
        "megabytes": f"{card['bytes'] / 1e6:.1f}",
        "shipped": card["shipped"],
        "development": ", ".join(f"seed {s}: {_cell(e['development']['all'])}" for s, e in card["seeds"].items()),
        "agreement": f"{card['packed_agreement'] * 100:.2f}",
        "accuracy_table": _accuracy(card),
        "subset_table": _subsets(card),
        "object_table": _objects(card),
        "stage_table": _stages(card),
        "wall": f"{max(_seconds(card, 'wall_seconds')) / 60:.0f}",
        "cpu": f"{sum(_seconds(card, 'cpu_seconds')) / 60:.0f}",
        "digits": ", ".join(f"{n:,} {split}" for split, n in card["digit_images"].items()),
        "machine": f"{machine['processor']}, {machine['cores']} cores, no GPU; Python {machine['python']}, "
        f"torch {machine['torch']}, transformers {machine['transformers']}",
        "families": ", ".join(f"`{family}`" for family in FAMILIES),
    }
    return TEXT.format(**values)


def write(card: Card, folder: Path) -> None:
    """`card.json` and `README.md`."""
    (folder / "card.json").write_text(json.dumps(card, indent=1) + "\n")
    (folder / "README.md").write_text(render(card))
