"""The experiments that are shipped with prunekit, as YAML files: the sub-package prunekit.experiments."""

if __name__ != "prunekit.experiments":
    raise ImportError("import prunekit.experiments: the folder benchmarks/experiments/ is that package")
