"""How the bundled tiny LLaVA is trained: `python -m prunekit.models.tiny.training`, or `make train-tiny`."""
