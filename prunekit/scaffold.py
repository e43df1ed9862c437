"""`prunekit new-policy NAME`: a policy, its test and its page, which pass as they are."""

from __future__ import annotations

import keyword
import re
from pathlib import Path

from prunekit.errors import ConfigError, OutputError

__all__ = ["new_policy"]


def new_policy(name: str, folder: Path) -> list[Path]:
    """Write `<name>.py`, `test_<name>.py` and `<name>.md` into a folder; returns their paths.

    Args:
        name: the class, such as `Loudest`; its module is `loudest`.
        folder: made if it does not exist.

    Raises:
        ConfigError: the name is no name of a class, or is taken by prunekit.
        OutputError: one of the files exists already, or cannot be written.
    """
    from prunekit.plugins import available_policies

    if not re.fullmatch(r"[A-Z][A-Za-z0-9]*", name) or keyword.iskeyword(name):
        raise ConfigError(f"new-policy {name!r}: give the name of a class, letters and digits, such as 'Loudest'.")
    if name in available_policies():
        raise ConfigError(f"new-policy {name!r}: prunekit has a policy of this name already; choose another.")
    module = re.sub(r"(?<=[a-z0-9])(?=[A-Z])|(?<=[A-Z])(?=[A-Z][a-z])", "_", name).lower()
    files = {f"{module}.py": POLICY, f"test_{module}.py": TEST, f"{module}.md": PAGE}
    taken = [str(folder / file) for file in files if (folder / file).exists()]
    if taken:
        raise OutputError(f"new-policy {name!r}: {', '.join(taken)} exists already; nothing was written.")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for file, text in files.items():
            (folder / file).write_text(text.replace("NAME", name).replace("MODULE", module), encoding="utf-8")
    except OSError as error:
        raise OutputError(f"new-policy {name!r}: {folder} cannot be written: {error.strerror}.") from None
    return [folder / file for file in files]


POLICY = '''\
"""NAME: one line about the idea."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from prunekit import Needs, ScoringPolicy, VisualTokens

__all__ = ["NAME"]


@dataclass(frozen=True)
class NAME(ScoringPolicy):
    """Keep the visual tokens whose states have the largest norm.

    `r_i = |h_i|^power`. Replace the formula, and say where it comes from.

    Args:
        power: fields are parameters, in Python and in YAML.
    """

    power: float = 1.0

    needs = Needs()  # what is read besides the states: Needs("last"), Needs(keys=True), Needs(text=True), ...

    def score(self, tokens: VisualTokens) -> Tensor:
        """[batch, visual], the highest are kept."""
        return tokens.hidden.float().norm(dim=-1) ** self.power
'''

TEST = '''\
"""NAME on a small random model: run with `pytest test_MODULE.py`."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from MODULE import NAME

from prunekit import Keep, Stage, prune
from prunekit.models.tiny.builders import tiny_random

SITE = "input"


@pytest.fixture(scope="module")
def llava() -> Any:
    """A model and what makes its inputs."""
    return tiny_random("llava")


@torch.no_grad()
def test_keeps_as_many_as_it_was_asked_for(llava: Any) -> None:
    model, make_inputs = llava
    with prune(model, Stage(SITE, NAME(), Keep(tokens=7))) as session:
        model.generate(**make_inputs(batch=2), max_new_tokens=2)
    assert session.trace[-1].kept.shape == (2, 7)


@torch.no_grad()
def test_keeping_everything_changes_nothing(llava: Any) -> None:
    model, make_inputs = llava
    inputs = make_inputs()
    plain = model(**inputs).logits
    with prune(model, Stage(SITE, NAME(), Keep(ratio=1.0))):
        assert torch.equal(model(**inputs).logits, plain)


@torch.no_grad()
def test_a_row_of_a_batch_keeps_what_it_keeps_alone(llava: Any) -> None:
    model, make_inputs = llava
    batch = make_inputs(batch=3, images=(2, 1, 3), text=(5, 8, 6))
    with prune(model, Stage(SITE, NAME(), Keep(ratio=0.25))) as session:
        model(**batch)
        together = session.trace[-1].kept
        for row, alone in enumerate(batch.rows):
            model(**alone)
            kept = together[row][together[row] >= 0]
            assert torch.equal(session.trace[-1].kept[0], kept)
'''

PAGE = """\
# NAME

Keep the visual tokens whose states have the largest norm: `r_i = |h_i|^power`.

```python
from MODULE import NAME

from prunekit import Keep, Stage, prune
from prunekit.models.tiny.builders import tiny_random

model, make_inputs = tiny_random("llava")
with prune(model, Stage("input", NAME(), Keep(ratio=0.25))) as session:
    model.generate(**make_inputs(), max_new_tokens=2)
print(session.trace[-1].kept)
```

In an experiment, beside `MODULE.py`:

```yaml
methods:
  NAME: MODULE.NAME
  NAME with another power:
    class_path: MODULE.NAME
    init_args: {power: 2.0}
```

A package offers it to everyone who installs it by an entry point in its `pyproject.toml`; then `NAME` alone names it:

```toml
[project.entry-points."prunekit.policies"]
NAME = "MODULE:NAME"
```
"""
