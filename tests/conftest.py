"""What every test gets: no network, a fixed seed, and its share of the processor's cores."""

import importlib
import os
import random
import socket
import sys
from collections.abc import Iterator
from importlib.util import find_spec
from typing import Any

WORKERS = int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", "1"))
THREADS = max(1, (os.cpu_count() or 1) // WORKERS)
os.environ.update(HF_HUB_OFFLINE="1", TRANSFORMERS_OFFLINE="1", TOKENIZERS_PARALLELISM="false")
os.environ.update(MPLBACKEND="agg", OMP_NUM_THREADS=str(THREADS))  # read when torch is imported

import numpy as np  # noqa: E402
import pytest  # noqa: E402
import torch  # noqa: E402

# What is first imported by a module of prunekit is compiled anew, past its bytecode: jaxtyping's import hook gives all
# files a cache of its own meanwhile. So the large packages are imported here, which saves each process some seconds.
for name in ("transformers.modeling_utils", "pytorch_lightning", "jsonargparse", "matplotlib.pyplot", "fvcore.nn"):
    importlib.import_module(name)


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--golden", metavar="DIR", help="golden vectors for tests/parity instead of those that are here")
    parser.addoption("--parity-json", metavar="FILE", help="where tests/parity writes what came of its cases")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Skip families that the installed release of transformers does not have, or cannot run itself."""
    import transformers
    from catalogue import BROKEN

    from prunekit.models.tiny.builders import BUILDERS

    absent = {name for name, module in BUILDERS.items() if find_spec(f"transformers.models.{module}") is None}
    unable = dict.fromkeys(absent, "does not have it")
    unable |= {name: why for (name, release), why in BROKEN.items() if release == transformers.__version__}
    for item in items if unable else ():
        values = (
            item.callspec.params.values() if isinstance(item, pytest.Function) and hasattr(item, "callspec") else ()
        )
        for name in {str(getattr(value, "name", value)) for value in values} & unable.keys():
            item.add_marker(pytest.mark.skip(reason=f"{name}: transformers {transformers.__version__} {unable[name]}"))


@pytest.fixture(autouse=True)
def seed() -> int:
    """Start every test from the same random state."""
    random.seed(0)
    np.random.seed(0)
    torch.manual_seed(0)
    return 0


@pytest.fixture(autouse=True, scope="session")
def no_network() -> Iterator[None]:
    """Let sockets reach this machine only."""

    def guarded(original: Any) -> Any:
        def connect(self: socket.socket, address: Any) -> Any:
            local = self.family == getattr(socket, "AF_UNIX", None)
            if not local and not str(address[0]).startswith(("127.", "::1", "localhost")):
                self.close()
                raise RuntimeError(f"tests run without a network, but something tried to reach {address!r}")
            return original(self, address)

        return connect

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(socket.socket, "connect", guarded(socket.socket.connect))
        patch.setattr(socket.socket, "connect_ex", guarded(socket.socket.connect_ex))
        yield


@pytest.fixture
def modules(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """Imports modules of the benchmarks, which are scripts and no package."""
    from scripts import BENCHMARKS

    monkeypatch.syspath_prepend(str(BENCHMARKS))
    before = set(sys.modules)
    yield __import__
    for name in set(sys.modules) - before:
        if str(getattr(sys.modules[name], "__file__", "")).startswith(str(BENCHMARKS)):
            del sys.modules[name]
