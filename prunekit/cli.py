"""The command line: `prunekit run`, `list`, `flops`, `fit`, `bench` and `new-policy`.

Mistakes of the user end with one message and exit code 2, Ctrl-C with 130; what a run has answered is never lost.
"""

from __future__ import annotations

import json
import os
import sys
from argparse import ArgumentParser as Plain
from argparse import RawDescriptionHelpFormatter
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

from jsonargparse import ArgumentParser

from prunekit._options import read_options
from prunekit.errors import ConfigError, PrunekitError, nearest

__all__ = ["main"]

FOLDER = "PRUNEKIT_OUTPUT"
"""Environment variable that tells the other processes of a run on several devices where results go."""

DESCRIPTION = """\
Training-free pruning of visual tokens in large vision-language models, on
unmodified Hugging Face models.

commands:
  run EXPERIMENT.yaml    compare methods at several budgets on one task
  list KIND              policies, models, tasks or experiments
  flops MODEL METHOD     operations of a prefill, by part
  fit MODEL              FitPrune's schedule or VTW's layer for a model
  bench MODEL METHOD     time and memory, beside the dense model
  new-policy NAME        a policy, its test and its page to begin with

Each has a --help of its own.
"""

EPILOG = """\
examples:
  prunekit run quickstart                    the shipped demo, bundled model
  prunekit run my.yaml --output runs/first   results in runs/first; again:
                                             continue after an interruption
  prunekit run my.yaml --budgets '[0.5, 64]' --task.init_args.scenes 50
                                             any key of the YAML is an option
  prunekit run my.yaml --methods.STAR.init_args.layer 2
  prunekit list policies --compatible tiny
  prunekit flops llava-1.5-7b STAR FastV --budget 0.25   (no weights needed)
  prunekit fit tiny --saving 0.5             prints a method for the YAML
  prunekit bench tiny STAR --batch 1 4       milliseconds, MiB, a roofline

results:
  runs/DATE-NAME/, or the folder that --output names, with result.json,
  report.html (opens in a browser, works offline), pareto.png, overlays/,
  predictions.jsonl (every answer) and config.yaml (runs the same again).

a policy of your own, in my_module.py beside the YAML file:
  from dataclasses import dataclass
  from prunekit import ScoringPolicy

  @dataclass(frozen=True)
  class Loudest(ScoringPolicy):
      \"\"\"Keep the visual tokens with the largest norm.\"\"\"
      def score(self, tokens):               # [batch, visual], higher is kept
          return tokens.hidden.norm(dim=-1)

and in the YAML file:
  task: {class_path: Scenes, init_args: {scenes: 50}}
  methods:
    Loudest: my_module.Loudest               # one stage, at the input
    two stages:
      - {site: input, policy: my_module.Loudest, keep: {ratio: 0.5}}
      - {site: decoder.2, policy: CrossAttention, keep: {ratio: 0.1}}
  budgets: [0.5, 0.25]

exit codes: 0 done, 1 an unexpected error, 2 a mistake in the input, 130 Ctrl-C.
"""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit code."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    try:
        return _main(words)
    except PrunekitError as error:
        print(f"prunekit: {error}", file=sys.stderr)
        return 2
    except BrokenPipeError:  # the reader of our output has gone, as with `| head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except KeyboardInterrupt as error:
        print(f"\nprunekit: interrupted. {error}".rstrip(), file=sys.stderr)
        return 130


def _main(words: list[str]) -> int:
    commands = {"run": _run, "list": _list, "flops": _flops, "fit": _fit, "bench": _bench, "new-policy": _new_policy}
    parser = Plain(
        prog="prunekit",
        usage="prunekit COMMAND ...",
        description=DESCRIPTION,
        epilog=EPILOG,
        formatter_class=RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="store_true", help="show the version and exit")
    if words and words[0] in commands:
        return commands[words[0]](words[1:])
    if not words:
        parser.print_help()
        return 0
    if not words[0].startswith("-"):
        raise ConfigError(
            f"there is no command {words[0]!r}; commands are {', '.join(commands)}.{nearest(words[0], commands)}"
        )
    known, unknown = parser.parse_known_args(words)
    if unknown:
        raise ConfigError(f"unrecognized arguments: {' '.join(unknown)}; see prunekit --help.")
    if known.version:
        import prunekit

        print(f"prunekit {prunekit.__version__}")
    return 0


def _run(words: list[str]) -> int:
    from prunekit.evaluation.config import experiment_parser, load_experiment

    if not words or words[0] in ("-h", "--help"):
        whole = experiment_parser(
            prog="prunekit run EXPERIMENT.yaml [--output DIR]",
            usage="prunekit run EXPERIMENT.yaml [--output DIR] [--KEY VALUE ...]",
            description="Run an experiment. Every key of the YAML file is an option, too; options win.",
        )
        whole.print_help()
        return 0
    if words[0].startswith("-"):
        raise ConfigError("name the experiment first: prunekit run EXPERIMENT.yaml [--output DIR] [--KEY VALUE ...]")
    output, overrides = _take_output(words[1:])
    experiment = load_experiment(words[0], overrides)
    return _execute(experiment, output, Path(words[0]).stem)


def _take_output(words: list[str]) -> tuple[str | None, list[str]]:
    """Split `--output DIR` from the options that belong to the experiment."""
    parser = Plain(add_help=False, allow_abbrev=False, exit_on_error=False)
    parser.add_argument("--output")
    try:
        known, rest = parser.parse_known_args(words)
    except Exception as error:
        raise ConfigError(f"--output: {error}") from None
    return known.output, rest


def _execute(experiment: Any, output: str | None, name: str) -> int:
    from rich.console import Console

    from prunekit.evaluation import runner
    from prunekit.evaluation.output import dated_folder
    from prunekit.evaluation.table import WIDE, table

    follows = int(os.environ.get("LOCAL_RANK", "0")) > 0  # started by Lightning, one for each further device
    given = output or (os.environ.get(FOLDER) if follows else None)
    folder = Path(given) if given else dated_folder(name)
    os.environ[FOLDER] = str(folder)
    again = f"Continue with: prunekit run {folder / 'config.yaml'} --output {folder}"
    try:
        result = runner.run(experiment, folder)
    except KeyboardInterrupt:
        raise KeyboardInterrupt(again if (folder / "config.yaml").exists() else "") from None
    except PrunekitError as error:
        kept = (folder / "predictions.jsonl").exists()
        raise type(error)(f"{error}\nAnswers so far are kept. {again}" if kept else str(error)) from None
    if follows:
        return 0
    console = Console() if sys.stdout.isatty() else Console(width=WIDE)
    console.print(table(result, console.width))
    console.print(f"Report: {folder / 'report.html'}", soft_wrap=True, highlight=False)
    return 0


def _list(words: list[str]) -> int:
    from prunekit.listing import KINDS, compatible, entries

    parser = ArgumentParser(prog="prunekit list", description="List what experiments can name.", exit_on_error=False)
    parser.add_argument("kind", type=str, help=f"One of {', '.join(KINDS)}.")
    parser.add_argument("--json", action="store_true", help="Print JSON.")
    parser.add_argument(
        "--compatible",
        type=str,
        metavar="MODEL",
        help="Of policies: where each works on this model (tiny, a folder, a hub name or a family), or why not.",
    )
    chosen = read_options(parser, words)
    if chosen.compatible is not None and chosen.kind != "policies":
        raise ConfigError(f"--compatible goes with 'prunekit list policies', not with {chosen.kind!r}.")
    found = entries(chosen.kind) if chosen.compatible is None else compatible(chosen.compatible)
    if chosen.json:
        print(json.dumps([{"name": name, "description": text} for name, text in found], indent=2))
        return 0
    width = max(len(name) for name, _ in found)
    for name, text in found:
        print(f"{name:<{width}}  {text}")
    return 0


def _flops(words: list[str]) -> int:
    from prunekit.costs.command import flops_parser, run_flops

    run_flops(read_options(flops_parser(), words))
    return 0


def _fit(words: list[str]) -> int:
    from prunekit.fit_command import METHODS, Request, fitted

    parser = ArgumentParser(
        prog="prunekit fit",
        description="Fit a method to a model on samples of a task; prints YAML for the methods of an experiment.",
        exit_on_error=False,
    )
    parser.add_argument("model", type=str, help="tiny, a local folder, or a hub name.")
    parser.add_argument("--method", type=str, default="FitPrune", help=f"One of {', '.join(METHODS)}.")
    for name, kind, text in (
        ("saving", float, "FitPrune: least share of the language model's prefill FLOPs to be saved, such as 0.5."),
        ("threshold", float, "VTW: least mean cosine of the last token's final state to the whole model's."),
        ("first", int, "VTW: the earliest layer to try; 5 if not given."),
    ):
        parser.add_argument(f"--{name}", type=kind | None, default=None, help=text)
    parser.add_argument("--samples", type=int, default=Request.samples, help="Samples, spread evenly over the task.")
    parser.add_argument(
        "--task", type=str, default=Request.task, help="Not one you report results on. Development scenes if not given."
    )
    dtypes = Literal["float32", "bfloat16", "float16"]
    parser.add_argument("--dtype", type=dtypes, default="float32", help="Type of the weights.")
    parser.add_argument("--output", type=str | None, default=None, metavar="FILE", help="Write the YAML there, too.")
    print(fitted(Request(**vars(read_options(parser, words)))), end="")
    return 0


def _bench(words: list[str]) -> int:
    from prunekit.latency.command import main as bench

    return bench(words)


def _new_policy(words: list[str]) -> int:
    from prunekit.scaffold import new_policy

    parser = ArgumentParser(
        prog="prunekit new-policy",
        description="Write a policy, its test and its page, which pass as they are.",
        exit_on_error=False,
    )
    parser.add_argument("name", type=str, help="Name of the class, such as Loudest.")
    parser.add_argument("--output", type=str, default=".", metavar="DIR", help="Folder to write to.")
    chosen = read_options(parser, words)
    files = new_policy(chosen.name, Path(chosen.output))
    print("\n".join(map(str, files)))
    test = next(file for file in files if file.name.startswith("test_"))
    print(f"Try it: cd {test.parent} && pytest {test.name}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
