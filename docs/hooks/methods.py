"""The page of a published method, made from `method_facts.py`."""

from __future__ import annotations

import ast
import re
from dataclasses import MISSING, fields
from typing import Any

import yaml
from method_facts import BY_DATA, SHAPE, VISUAL, Facts, case_row, found, left, methods, reads, support
from method_results import results, scoring
from page_parts import code, table, yes

TYPES = {
    "int": "number",
    "float": "number",
    "bool": "true or false",
    "int | None": "number",
    "float | None": "number",
    "int | float | Keep": "share, number or `Keep`",
    "int | float | Keep | None": "share, number or `Keep`",
    "tuple[int, ...]": "numbers",
}


def page(name: str) -> str:
    """The page of one method, without its title."""
    facts = next(each for each in methods() if each.name == name)
    sections = {
        "Idea": _linked(facts.idea),
        "Stages": _stages(facts),
        "Parameters": _parameters(facts),
        "What it needs of a model": _needs(facts),
        "Differs from the reference": _linked(facts.differs[:1].upper() + facts.differs[1:])
        or "In nothing that we know of.",
        "Parity": _parity(facts),
        "In an experiment": _yaml(facts),
        "Where it runs": _where(facts),
        "Results on the bundled model": results(name),
        "Cost of scoring": scoring(name),
    }
    parts = [f"## {title}\n\n{text.strip()}" for title, text in sections.items() if text]
    return "\n\n".join([_summary(facts), *parts])


def _summary(facts: Facts) -> str:
    reference = facts.reference
    url = reference and reference.code
    rows = [
        ["Published", f"{reference.cited}, [arXiv {reference.arxiv}]({reference.paper})" if reference else "no"],
        *([["Title", reference.title]] if reference and reference.title else []),
        ["Authors' code", f"[{url.removeprefix('https://')}]({url})" if url else "no address known to us"],
        *([["Its licence", reference.licence or "not known to us"]] if reference and url else []),
        ["Variants", code(reference.variants) if reference and reference.variants else "one"],
        ["Parity", _agreement(facts)],
        ["Asks the text", yes(facts.text_aware)],
        ["Merges tokens", yes(facts.merges)],
        ["Positions as published", facts.example.positions],
        ["API", f"[`{facts.name}`](docs/api/policies.md#prunekit.policies.{facts.name})"],
    ]
    return table(["", ""], rows)


def _stages(facts: Facts) -> str:
    rows = [
        [f"`{stage.site}`", _policy(stage.policy), str(stage.keep or "its own"), left(count)]
        for stage, count in zip(facts.stages, facts.counts, strict=True)
    ]
    if len(rows) > 8:
        rows = [*rows[:3], [f"{len(rows) - 5} more", "", "", ""], *rows[-2:]]
    average = BY_DATA if facts.average is None else f"{facts.average:.4g}"
    return (
        f"On a language model of {SHAPE.depth} layers, with an encoder of {SHAPE.encoder} and {VISUAL} visual tokens"
        f" (LLaVA-1.5-7B), {_arguments(facts)}:\n\n"
        + table(["Site", "Policy", "Budget", f"Left of {VISUAL}"], rows)
        + f"\n\nVisual tokens in a layer of the language model, on average: {average}."
    )


def _arguments(facts: Facts) -> str:
    return "with the default arguments" if facts.example == facts.cls() else "with an even schedule"


def _policy(policy: Any) -> str:
    """Its name, and what was set."""
    kind = type(policy)
    given = [f for f in fields(policy) if f.default is MISSING or getattr(policy, f.name) != f.default]
    words = ", ".join(f"{f.name}={getattr(policy, f.name)!r}" for f in given if len(repr(getattr(policy, f.name))) < 40)
    text = f"{kind.__name__}({words})" if words else kind.__name__
    return f"[`{text}`](docs/api/policies.md#prunekit.policies.{kind.__name__})" if _public(kind) else f"`{text}`"


def _parameters(facts: Facts) -> str:
    rows = []
    for field in fields(facts.example):
        literal = re.fullmatch(r"Literal\[(.*)\]", field.type)
        kind = " or ".join(code(ast.literal_eval(f"[{literal[1]}]")).split(", ")) if literal else TYPES[field.type]
        default = {None: "none", (): "none"}.get(field.default, f"`{field.default}`")
        rows.append([f"`{field.name}`", kind, default, _linked(facts.arguments[field.name])])
    return table(["Name", "Value", "Default", "Meaning"], rows)


def _needs(facts: Facts) -> str:
    kinds = {stage.site.partition(".")[0] for stage in facts.stages}
    rows = {row.queries for needs in facts.needs for row in needs.attention}
    asked = {
        "sites inside the vision encoder": "vision" in kinds,
        "a projector that is given one row of features an image": "connector" in kinds,
        "a [CLS] token in the vision encoder": "cls" in rows,
        "an adapter that names the layers of the vision encoder": "visual" in rows,
        "encoder layers that take a mask": any(needs.bias for needs in facts.needs),
        "a map from patches to visual tokens": any(needs.patches for needs in facts.needs),
    }
    wanted = [f"- {text}" for text, needed in asked.items() if needed]
    text = f"It reads: {reads(facts.needs)}."
    return text + ("\n\n" + "\n".join(wanted) if wanted else " Every model that can be pruned has that.")


def _agreement(facts: Facts) -> str:
    if not facts.cases:
        return f"unproven: {facts.reference.unproven}" if facts.reference else "unproven"
    agree = sum(case["agrees"] for case in facts.cases.values())
    return f"{agree} of {len(facts.cases)} [cases](docs/parity.md) agree"


def _parity(facts: Facts) -> str:
    if not facts.cases:
        return f"{_agreement(facts).capitalize()}."
    head = ["Case", "Repository, commit", "Variant", "Outputs equal", "Within tolerance", "Not compared"]
    return table(head, [case_row(name, case) for name, case in facts.cases.items()])


def example_yaml(facts: Facts) -> str:
    """A method with its arguments, as an experiment names it."""
    values = {field.name: getattr(facts.example, field.name) for field in fields(facts.example)}
    values = {name: [*value] if isinstance(value, tuple) else value for name, value in values.items()}
    entry = {"class_path": facts.name, "init_args": values}
    return yaml.safe_dump({"methods": {facts.name: entry}}, sort_keys=False, width=100, default_flow_style=None)


def _yaml(facts: Facts) -> str:
    plain = f"`{facts.name}: {facts.name}` under `methods` takes the default arguments; this spells them out:"
    if facts.example != facts.cls():
        plain = "The schedule is an even one, fitted on nothing; put your own in its place:"
    return f"{plain}\n\n```yaml\n{example_yaml(facts)}```\n\n[Experiments in YAML](docs/experiments.md) has the rest."


def _where(facts: Facts) -> str:
    able = [name for families, answers in support() for name in families if answers[facts.name].sites]
    refused: dict[str, list[str]] = {}
    for families, answers in support():
        if not answers[facts.name].sites:
            refused.setdefault(answers[facts.name].reason, []).extend(families)
    text = f"Families whose tiny random model it attaches to: {code(sorted(able))}."
    return text + "".join(f"\n\nNot on {code(sorted(names))}: {reason}" for reason, names in refused.items())


def _public(cls: type) -> bool:
    return getattr(found, cls.__name__, None) is cls


def _linked(text: str) -> str:
    """Names of methods and policies in a docstring become links."""

    def link(match: re.Match[str]) -> str:
        return (
            f"[{match[0]}](docs/api/policies.md#prunekit.policies.{match[1]})"
            if match[1] in found.__all__
            else match[0]
        )

    return re.sub(r"`(\w+)`", link, text)
