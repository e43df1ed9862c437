"""The pages of the documentation: their code blocks, and running them."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from prunekit.models.tiny import PATH

ROOT = Path(__file__).resolve().parents[1]
NAMES = [str(page.relative_to(ROOT)) for page in (ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md")))]

BLOCK = re.compile(
    r"^(?:<!-- skip: (?P<reason>.+?) -->\n\s*)?"
    r'```(?P<kind>\w+)(?: title="(?P<title>[^"]+)")?\n(?P<code>.*?)^```$',
    re.MULTILINE | re.DOTALL,
)


@dataclass(frozen=True)
class Block:
    """A fenced block of a page."""

    page: str
    line: int
    kind: str
    code: str
    title: str | None
    skip: str | None

    @property
    def where(self) -> str:
        return f"{self.page}:{self.line}"


def blocks(page: str, *kinds: str) -> list[Block]:
    """The blocks of a page, in order; all, or those of some kinds."""
    text = (ROOT / page).read_text(encoding="utf-8")
    found = []
    for match in BLOCK.finditer(text):
        line = text[: match.start("code")].count("\n") + 1
        found.append(Block(page, line, match["kind"], match["code"], match["title"], match["reason"]))
    return [block for block in found if not kinds or block.kind in kinds]


def pages_with(*kinds: str) -> list[str]:
    """Pages with blocks of these kinds that are not skipped."""
    return [name for name in NAMES if any(not block.skip for block in blocks(name, *kinds))]


def write_titled(page: str) -> None:
    """Blocks with a file name as their title become files in the working directory."""
    for block in blocks(page):
        if block.title:
            Path(block.title).write_text(block.code, encoding="utf-8")


def run_python(page: str) -> dict[str, Any]:
    """All blocks of a page, in order and in one namespace; the bundled model stands in for the one on the hub."""
    write_titled(page)
    namespace: dict[str, Any] = {"__name__": "docs"}
    for block in blocks(page, "python"):
        if block.skip:
            print(f"{block.where} is skipped: {block.skip}")
            continue
        code = block.code.replace('"llava-hf/llava-1.5-7b-hf"', repr(str(PATH)))
        source = "\n" * (block.line - 1) + code  # so that tracebacks name the line of the page
        exec(compile(source, str(ROOT / page), "exec", dont_inherit=True), namespace)
    return namespace
