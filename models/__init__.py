"""Model families: one adapter a file. A new family is its file, an import and an entry of `ADAPTERS`."""

if __name__ != "prunekit.models":
    raise ImportError(
        "import prunekit.models: the top-level folder models/ is that package, "
        "and a second copy under another name would make a second set of classes"
    )

from prunekit.models.llava import LlavaAdapter

ADAPTERS = (LlavaAdapter,)

__all__ = ["ADAPTERS", "LlavaAdapter"]
