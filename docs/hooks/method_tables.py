"""Tables over all methods, policies and families."""

from __future__ import annotations

from collections.abc import Iterable

from method_facts import BY_DATA, Facts, case_row, found, left, methods, parity, reads, support
from method_results import scoring_of_all
from page_parts import code, first_sentence, table, yes

from prunekit.compatibility import buildable
from prunekit.plan import Method


def comparison() -> str:
    """All methods side by side."""
    head = [
        "Method",
        "Published",
        "Where",
        "Reads",
        "Text",
        "Merges",
        "Knob",
        "Left of 576",
        "Average",
        "Positions",
        "Parity",
    ]
    rows = []
    for each in methods():
        sites = [f"`{stage.site}`" for stage in each.stages]
        where = ", ".join(sites) if len(sites) <= 4 else f"{sites[0]} to {sites[-1]}, {len(sites)} stages"
        levels = dict.fromkeys(left(count) for count in each.counts)
        average = BY_DATA if each.average is None else f"{each.average:.4g}"
        proven = f"{len(each.cases)} cases" if each.cases else "unproven"
        rows.append(
            [
                f"[{each.name}](docs/{each.page})",
                each.reference.cited.rpartition(", ")[2] if each.reference else "",
                where,
                reads(each.needs),
                yes(each.text_aware),
                yes(each.merges),
                each.knob,
                " → ".join(levels) if len(levels) <= 4 else f"{next(iter(levels))} → … → {[*levels][-1]}",
                average,
                each.example.positions,
                proven,
            ]
        )
    return table(head, rows)


def named_methods() -> str:
    """Methods with links to their pages."""
    rows = [[f"[`{each.name}`](docs/{each.page})", first_sentence(each.cls)] for each in methods()]
    return table(["Name", "What it is"], rows)


def elementary() -> str:
    """Policies that stand for themselves."""
    rows = []
    for name, cls in _classes():
        if issubclass(cls, Method) or not buildable(cls):
            continue
        of = f"[{cls.reference.name}]({cls.reference.paper})" if cls.reference else ""
        rows.append([_api(name), code(cls.sites), reads([cls().needs]), of, first_sentence(cls)])
    return table(["Name", "Sites", "Reads", "From", "What it is"], rows)


def combinators() -> str:
    """What is made from other policies."""
    rows = [[_api(name), first_sentence(cls)] for name, cls in _classes() if not buildable(cls)]
    return table(["Name", "What it is"], rows)


def _classes() -> list[tuple[str, type]]:
    return [(name, getattr(found, name)) for name in sorted(found.__all__, key=str.lower)]


def _api(name: str) -> str:
    return f"[`{name}`](docs/api/policies.md#prunekit.policies.{name})"


def matrix() -> str:
    """Which families serve which methods: a row for all families that serve the same."""
    rows = [
        [code(sorted(families)), *("✓" if each.sites else "" for each in answers.values())]
        for families, answers in support()
    ]
    head = ["Families", *(f"[{each.name}](docs/{each.page})" for each in methods())]
    return table(head, rows)


def refusals() -> str:
    """Why a method does not work on a family."""
    parts = []
    for families, answers in support():
        reasons: dict[str, list[str]] = {}
        for name, each in answers.items():
            if not each.sites:
                reasons.setdefault(_shared(each.reason), []).append(name)
        if reasons:
            rows = [[", ".join(names), reason] for reason, names in reasons.items()]
            parts.append(f"**{code(sorted(families))}**\n\n" + table(["Methods", "Refused, as"], rows))
    return "\n\n".join(parts)


def _shared(reason: str) -> str:
    """A reason without the name of the policy and the site that it begins with."""
    words = reason.split(" reads ", 1)
    return f"it reads {words[1]}" if len(words) == 2 and words[0].split()[0].isalnum() else reason


def scoring() -> str:
    """What every method's scoring costs."""
    return scoring_of_all()


def agreement() -> str:
    """Methods and how many golden cases agree."""
    return table(
        ["Method", "Cases that agree", "Outputs equal", "Floats within", "Commit", "Variant"], map(_agree, methods())
    )


def _agree(facts: Facts) -> Iterable[str]:
    link, cases = f"[{facts.name}](docs/{facts.page})", [*facts.cases.values()]
    if not cases:
        why = facts.reference.unproven if facts.reference else ""
        return [link, f"unproven: {why}", "", "", "", ""]
    close = sum(case["close"] for case in cases)
    return [
        link,
        f"{sum(case['agrees'] for case in cases)} of {len(cases)}",
        str(sum(case["equal"] for case in cases)),
        f"{max(case['error'] for case in cases):.1e} ({close} outputs)" if close else "",
        code(dict.fromkeys(case["commit"][:7] for case in cases)),
        code(dict.fromkeys(case["variant"] for case in cases if case["variant"])) or "only one",
    ]


def cases() -> str:
    """Every golden case."""
    head = ["Case", "Repository, commit", "Variant", "Outputs equal", "Within tolerance", "Not compared"]
    stored = parity()["methods"]
    return table(
        head, [case_row(f"{folder}/{name}", case) for folder in stored for name, case in stored[folder].items()]
    )
