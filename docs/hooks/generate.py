"""Parts of the documentation that are made from the code and from results, so that they cannot go stale.

A page asks for a part by a line `{{ name }}` or `{{ name argument }}`; an unknown name stops the build.
"""

from __future__ import annotations

import ast
import importlib
import importlib.util
import inspect
import json
import re
from collections.abc import Callable, Iterable
from functools import cache
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]

MARK = re.compile(r"^\{\{ *(\w+)(?: +(\S+))? *\}\}$", re.MULTILINE)


def on_page_markdown(markdown: str, page: Any, **kwargs: Any) -> str:
    """mkdocs calls this with the source of every page."""
    depth = page.file.src_uri.count("/") if page is not None else 0
    return expand(markdown, "../" * depth)


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


def first_sentence(cls: type) -> str:
    """What a class is, in its own words."""
    text = " ".join(inspect.cleandoc(cls.__doc__ or "").partition("\n\n")[0].split())
    return re.split(r"(?<=[^.]\.)\s", text, maxsplit=1)[0]


def table(head: Iterable[str], rows: Iterable[Iterable[str]]) -> str:
    """A table in Markdown."""
    head = list(head)
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def policies() -> str:
    """Every class of `prunekit.policies`, its sites and needs read from the class."""
    from prunekit import policies as found
    from prunekit.compatibility import buildable
    from prunekit.plan import Method, Shape

    rows, shape = [], Shape(32, 24, 22)
    for name in sorted(found.__all__, key=str.lower):
        cls = getattr(found, name)
        if not buildable(cls):
            sites, kind, needs = [], "combinator", []
        elif issubclass(cls, Method):
            stages = cls.example(shape).stages_of(shape)
            sites, kind = [stage.site for stage in stages], "method"
            needs = [stage.policy.needs for stage in stages]
        else:
            sites, kind, needs = [*cls.sites], "policy", [cls().needs]
        rows.append(
            [
                f"[`{name}`](docs/api/policies.md#prunekit.policies.{name})",
                kind,
                _code(sites) or "those of its parts",
                _reads(needs) if kind != "combinator" else "what they read",
                first_sentence(cls),
            ]
        )
    return table(["Name", "Kind", "Sites", "Reads", "What it is"], rows)


def _code(words: Iterable[str]) -> str:
    return ", ".join(f"`{word}`" for word in words)


def _reads(needs: Iterable[Any]) -> str:
    rows = [f"`{row.queries}` attention" for need in needs for row in need.attention]
    rows += ["text states" for need in needs if need.text]
    return ", ".join(dict.fromkeys(rows)) or "no attention"


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
    return _script("docs/hooks/families.py")


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
    "list[int | float]": "list of numbers",
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
    script: Any = _script("benchmarks/update_readme.py")
    return str(script.section(json.loads(path.read_text(encoding="utf-8")), picture=f"docs/images/{name}.png"))


def releases() -> str:
    """The releases of transformers that `make matrix` has tested."""
    return str(_script("tests/matrix.py").section())


def published(part: str) -> str:
    """Published costs recomputed: a part of `published.py`."""
    return table(PUBLISHED[part], getattr(_script("docs/hooks/published.py"), part)())


PUBLISHED = {
    "rules": ["Name", "One layer", "Unit", "Papers", "Leaves out"],
    "figures": ["Paper", "Tokens", "Printed", "By its rule", "Rule", "Text tokens", "`full`"],
    "stages": ["n1, n2", "Average tokens", "`visual-only`", "`full`, 95 text tokens"],
    "labels": ["", "192", "128", "96", "64"],
}


def _script(path: str) -> Any:
    spec = importlib.util.spec_from_file_location(Path(path).stem, ROOT / path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


PARTS: dict[str, Callable[..., str]] = {
    "policies": policies,
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
