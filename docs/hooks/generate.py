"""Parts of the documentation that are made from the code and from results, so that they cannot go stale.

A page asks for a part by a line `{{ name }}` or `{{ name argument }}`; an unknown name stops the build.
"""

from __future__ import annotations

import ast
import importlib
import json
import re
from collections.abc import Callable
from functools import cache
from typing import Any

from mkdocs.structure.files import File
from page_parts import ROOT, first_sentence, script, table

MARK = re.compile(r"^\{\{ *(\w+)(?: +(\S+))? *\}\}$", re.MULTILINE)


def on_page_markdown(markdown: str, page: Any, **kwargs: Any) -> str:
    """mkdocs calls this with the source of every page."""
    depth = page.file.src_uri.count("/") if page is not None else 0
    return expand(markdown, "../" * depth)


def on_config(config: Any) -> None:
    """mkdocs calls this first: every method gets a place among the pages, which `on_files` makes."""
    pages = next(part["Methods"] for part in config.nav if "Methods" in part)
    pages += [{each.name: each.page} for each in script("docs/hooks/method_facts.py").methods()]


def on_files(files: Any, config: Any) -> None:
    for each in script("docs/hooks/method_facts.py").methods():
        text = f"# {each.name}\n\n{{{{ method {each.name} }}}}\n"
        files.append(File.generated(config, each.page, content=text))


def expand(markdown: str, up: str = "") -> str:
    """Replace every mark by its part.

    Args:
        markdown: source of a page.
        up: path from the page's folder to `docs/`.
    """

    def part(match: re.Match[str]) -> str:
        if match[1] not in PARTS:
            raise KeyError(f"{{{{ {match[1]} }}}}: known parts are {', '.join(PARTS)}")
        text = PARTS[match[1]](match[2]) if match[2] else PARTS[match[1]]()
        return text.replace("](docs/", f"]({up}")

    return MARK.sub(part, markdown)


def families(part: str = "matrix") -> str:
    """The families of models: a part of `families.py`, which prunes a tiny random model of each."""
    found = _families()
    if part not in HEADS:
        return str(getattr(found, part)())
    return table(HEADS[part], getattr(found, part)())


HEADS = {
    "matrix": [
        "Type",
        "For example",
        "[CLS]",
        "Encoder attention",
        "A visual token is",
        "Several images",
        "Video",
        "Positions",
        "`vision.<i>`",
        "Refused",
    ],
    "others": ["Type", "What it is", "Several images", "Video", "Positions", "Refused"],
    "refused": ["Type", "What it is", "Why it is refused"],
}


@cache
def _families() -> Any:
    return script("docs/hooks/families.py")


def method(name: str) -> str:
    """The page of a method."""
    return str(script("docs/hooks/methods.py").page(name))


def methods(part: str) -> str:
    """A table of `method_tables.py`."""
    return str(getattr(script("docs/hooks/method_tables.py"), part)())


def fields(where: str) -> str:
    """Keys of a dataclass with their types, defaults and attribute docstrings; `where` is `module:Class`."""
    module, _, name = where.partition(":")
    path = ROOT / (module.replace(".", "/") + ".py")
    tree = ast.parse(path.read_text(encoding="utf-8"))
    body = next(node for node in tree.body if isinstance(node, ast.ClassDef) and node.name == name).body
    rows = []
    for node, after in zip(body, [*body[1:], None], strict=True):
        if not isinstance(node, ast.AnnAssign):
            continue
        text = after.value.value if isinstance(after, ast.Expr) and isinstance(after.value, ast.Constant) else ""
        name = ast.unparse(node.target)
        rows.append([f"`{name}`", _kind(node.annotation), _default(node.value), " ".join(str(text).split())])
    return table(["Key", "Type", "Default", "Meaning"], rows)


KINDS = {
    "int": "whole number",
    "int | float": "number",
    "str": "text",
    "str | None": "text",
    "bool": "true or false",
    "list[str]": "list of names",
    "list[int | float | Budget]": "list of numbers, or of measures with a number",
    "dict[str, Any]": "keys with values",
}


def _kind(annotation: ast.expr) -> str:
    """A type as people say it; what has no such form stays a type."""
    if isinstance(annotation, ast.Subscript) and ast.unparse(annotation.value) == "Literal":
        values = annotation.slice.elts if isinstance(annotation.slice, ast.Tuple) else [annotation.slice]
        return " or ".join(f"`{ast.literal_eval(value)}`" for value in values)
    text = ast.unparse(annotation)
    if text.startswith("dict[str, ") and text not in KINDS:
        return "names with values"
    return KINDS.get(text, f"[`{text}`][prunekit.evaluation.{text}]")


def _default(value: ast.expr | None) -> str:
    if value is None:
        return "required"
    if isinstance(value, ast.Constant):
        return "none" if value.value is None else f"`{value.value}`"
    if isinstance(value, ast.Call):  # field(default_factory=...)
        made = ast.unparse(next(k.value for k in value.keywords if k.arg == "default_factory"))
        return {"list": "empty", "dict": "empty"}.get(made, "all defaults")
    return f"`{ast.unparse(value)}`"


def errors() -> str:
    """Every error class with its own description."""
    from prunekit import errors as found

    classes = [getattr(found, name) for name in found.__all__ if isinstance(getattr(found, name), type)]
    rows = []
    for cls in classes:
        anchor = f"[](){{#prunekit.errors.{cls.__name__}}}"  # what the API pages link to
        base = cls.__base__.__name__
        rows.append([f"{anchor}`{cls.__name__}`", f"`{base}`", first_sentence(cls)])
    return table(["Name", "Kind of", "Raised for"], rows)


def include(name: str) -> str:
    """A file of the repository, without its front matter, links made to fit this site."""
    path = ROOT / name
    if not path.is_file():
        return f"`{name}` does not exist yet in this checkout."
    text = path.read_text(encoding="utf-8")
    return re.sub(r"\A---\n.*?\n---\n", "", text, flags=re.DOTALL)


def section(name: str) -> str:
    """A file of the repository as a part of a page: without its title, headings one level down."""
    text = re.sub(r"\A\s*# .*\n", "", include(name))
    blocks = re.split(r"(^```.*?^```$)", text, flags=re.MULTILINE | re.DOTALL)
    return "".join(b if b.startswith("```") else re.sub(r"^(#+ )", r"#\1", b, flags=re.MULTILINE) for b in blocks)


def objects(module: str) -> str:
    """The API of everything that a module exports."""
    names = sorted(importlib.import_module(module).__all__, key=str.lower)
    return "\n\n".join(f"::: {module}.{name}\n    options:\n      heading_level: 2" for name in names)


def results(name: str = "quickstart") -> str:
    """The table and the picture of a finished run that `benchmarks/update_readme.py` has put under version control."""
    path = ROOT / "benchmarks" / "results" / f"{name}.json"
    if not path.is_file():
        return "No results are stored in this checkout. `make demo` produces them on your machine, in some minutes."
    made: Any = script("benchmarks/update_readme.py")
    return str(made.section(json.loads(path.read_text(encoding="utf-8")), f"docs/images/{name}.png", name))


def releases() -> str:
    """The releases of transformers that `make matrix` has tested."""
    return str(script("tests/matrix.py").section())


def published(part: str) -> str:
    """Published costs recomputed: a part of `published.py`."""
    return table(PUBLISHED[part], getattr(script("docs/hooks/published.py"), part)())


PUBLISHED = {
    "rules": ["Name", "One layer", "Unit", "Papers", "Leaves out"],
    "figures": ["Paper", "Tokens", "Printed", "By its rule", "Rule", "Text tokens", "`full`"],
    "stages": ["n1, n2", "Average tokens", "`visual-only`", "`full`, 95 text tokens"],
    "labels": ["", "192", "128", "96", "64"],
}


def latency() -> str:
    """Speed-ups beside those that operations predict, from the stored run of `benchmarks/latency.py`."""
    path = ROOT / "benchmarks" / "results" / "latency.json"
    if not path.is_file():
        return "No results are stored in this checkout. `python benchmarks/latency.py` produces them, in some minutes."
    return str(script("benchmarks/latency.py").section(json.loads(path.read_text(encoding="utf-8"))))


def costs(part: str = "table") -> str:
    """What methods cost on presets, from the stored run of `benchmarks/cost_table.py`, or where presets come from."""
    made: Any = script("docs/hooks/costs.py")
    return str(getattr(made, part)())


PARTS: dict[str, Callable[..., str]] = {
    "costs": costs,
    "latency": latency,
    "method": method,
    "methods": methods,
    "families": families,
    "fields": fields,
    "errors": errors,
    "include": include,
    "section": section,
    "objects": objects,
    "results": results,
    "releases": releases,
    "published": published,
}
