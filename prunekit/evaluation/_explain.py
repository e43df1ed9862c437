"""Why a configuration was refused: the place, what is allowed there, and the nearest match.

jsonargparse decides what is accepted. Where it refuses, this module walks the same types down to the smallest part
that is refused by itself, because a message about one key is worth more than one about everything around it.
"""

from __future__ import annotations

import copy
import dataclasses
import functools
import importlib
import inspect
import operator
import types
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from jsonargparse import ArgumentError, ArgumentParser

from prunekit.errors import PrunekitError, nearest

__all__ = ["explain", "explain_call", "known_classes"]


def explain(value: Any, hint: Any, path: str) -> str | None:
    """A sentence about the smallest part of `value` that is no `hint`, or None where nothing is wrong."""
    refusal = _judge(value, hint, path)
    arm = _arm(value, hint)
    if refusal is None:
        return None
    if arm is None:
        return f"{path}: expected {_say(hint)}, given {_show(value)}."
    for inner, inner_hint, inner_path in _children(value, arm, path):
        if isinstance(inner_hint, str):
            return inner_hint
        found = explain(inner, inner_hint, inner_path)
        if found:
            return found
    return _judge(value, arm, path) or refusal


def explain_call(arguments: Mapping[str, Any], function: Any, path: str) -> str | None:
    """The same about keyword arguments of a class or function."""
    for value, hint, inner in _fields(arguments, function, path):
        found = hint if isinstance(hint, str) else explain(value, hint, inner)
        if found:
            return found
    return None


def known_classes(base: type) -> dict[str, type]:
    """Concrete subclasses of a base that have been imported, by name."""
    found: dict[str, type] = {}
    cls: type
    for cls in base.__subclasses__():
        found.update(known_classes(cls))
        if not inspect.isabstract(cls) and not cls.__name__.startswith("_"):
            found[cls.__name__] = cls
    return found


def _arm(value: Any, hint: Any) -> Any:
    """The member of a union that a value of this kind is meant for; None where there is none."""
    arms = _arms(hint)
    if len(arms) == 1:
        return arms[0]
    if value is None:
        return type(None) if type(None) in arms else None
    if isinstance(value, list):
        return next((a for a in arms if get_origin(a) in (list, tuple)), None)
    classes = [a for a in arms if _is_class(a)]
    if isinstance(value, Mapping):
        plain = next((a for a in arms if _is_fields(a)), None)
        return next((a for a in arms if get_origin(a) is dict), _one_of(classes) if classes else plain)
    if isinstance(value, str) and classes and str not in arms:
        return _one_of(classes)
    rest = [a for a in arms if get_origin(a) is Literal or not (_is_class(a) or _is_fields(a) or get_origin(a))]
    return _one_of(rest) if rest else None


def _one_of(arms: Sequence[Any]) -> Any:
    return functools.reduce(operator.or_, arms)


def _arms(hint: Any) -> tuple[Any, ...]:
    if get_origin(hint) in (Union, types.UnionType):
        return tuple(get_args(hint))
    return (hint,)


def _is_class(hint: Any) -> bool:
    return inspect.isclass(hint) and inspect.isabstract(hint)


def _is_fields(hint: Any) -> bool:
    return dataclasses.is_dataclass(hint) and not _is_class(hint)


def _children(value: Any, hint: Any, path: str) -> Iterator[tuple[Any, Any, str]]:
    """Parts of a value with their types and places; a sentence in place of a type says that a part is wrong."""
    origin, arguments = get_origin(hint), get_args(hint)
    if all(_is_class(a) for a in _arms(hint)):
        yield from _class_children(value, _arms(hint), path)
    elif _is_fields(hint) and isinstance(value, Mapping):
        yield from _fields(value, hint, path)
    elif origin is list and isinstance(value, list):
        yield from ((item, arguments[0], f"{path}[{i}]") for i, item in enumerate(value))
    elif origin is dict and isinstance(value, Mapping):
        yield from ((item, arguments[1], f"{path}.{key}".lstrip(".")) for key, item in value.items())


def _class_children(value: Any, bases: tuple[Any, ...], path: str) -> Iterator[tuple[Any, Any, str]]:
    name = value.get("class_path") if isinstance(value, Mapping) else value
    if isinstance(value, Mapping):
        if name is None:
            yield value, f"{path}: expected class_path and init_args, given {_show(value)}.", path
        for key in value:
            if key not in ("class_path", "init_args"):
                allowed = ("class_path", "init_args")
                yield (
                    value,
                    f"{path}.{key}: not accepted here; allowed are class_path, init_args.{nearest(key, allowed)}",
                    path,
                )
    cls = _find_class(name, bases)
    if isinstance(cls, str):
        yield value, f"{path}: {cls}", path
    elif isinstance(value, Mapping):
        yield from _fields(value.get("init_args") or {}, cls, path + ".init_args")


def _find_class(name: Any, bases: tuple[Any, ...]) -> type | str:
    """The class that a short name or a dotted path stands for, or what is wrong with it."""
    known = {k: v for base in bases for k, v in known_classes(base).items()}
    what = " or ".join(base.__name__ for base in bases)
    if name in known:
        return known[name]
    module, _, attribute = str(name).rpartition(".")
    if not module:
        return f"there is no {what} named {name!r}; known are {', '.join(sorted(known))}.{nearest(str(name), known)}"
    try:
        cls = getattr(importlib.import_module(module), attribute)
    except ImportError as error:
        places = "beside the YAML file and in the working directory"
        return f"{name!r} cannot be imported ({error}). Modules are looked for {places}."
    except AttributeError:
        names = [n for n, v in vars(importlib.import_module(module)).items() if inspect.isclass(v)]
        return f"module {module!r} has no {attribute!r}.{nearest(attribute, names)}"
    if not (inspect.isclass(cls) and issubclass(cls, bases)):
        return f"{name!r} is no {what}."
    return cls if not inspect.isabstract(cls) else f"{name!r} is abstract; name a subclass of it."


def _fields(value: Any, cls: Any, path: str) -> Iterator[tuple[Any, Any, str]]:
    """Keys of a mapping against the parameters of a class."""
    if not isinstance(value, Mapping):
        yield value, f"{path}: expected keys with values, given {_show(value)}.", path
        return
    parameters = inspect.signature(cls).parameters
    if any(p.kind is p.VAR_KEYWORD for p in parameters.values()):
        return
    hints = get_type_hints(cls.__init__)
    dot = f"{path}." if path else ""
    for key, item in value.items():
        if key not in parameters:
            allowed = f"allowed are {', '.join(parameters)}" if parameters else "nothing is allowed here"
            yield item, f"{dot}{key}: not accepted; {allowed}.{nearest(str(key), parameters)}", path
        elif key in hints:
            yield item, hints[key], f"{dot}{key}"
    for name, parameter in parameters.items():
        if (
            parameter.default is parameter.empty
            and name not in value
            and parameter.kind is not parameter.VAR_POSITIONAL
        ):
            yield value, f"{dot}{name}: required, but not given.", path


def _judge(value: Any, hint: Any, path: str) -> str | None:
    """Let jsonargparse parse and build a part whose own parts are fine."""
    if hint is type(None) or hint is Any:
        return None
    parser = ArgumentParser(exit_on_error=False)
    try:
        if _is_fields(hint):
            parser.add_class_arguments(hint, "x")
        else:
            parser.add_argument("--x", type=hint)
        parser.instantiate(parser.parse_object({"x": copy.deepcopy(value)}))
    except PrunekitError as error:
        text = str(error)
        return text if not path or text.startswith(path.split(".")[0]) else f"{path}: {text}"
    except (ArgumentError, ValueError):
        return f"{path}: expected {_say(hint)}, given {_show(value)}."
    return None


def _say(hint: Any) -> str:
    names = {int: "a whole number", float: "a number", str: "text", bool: "true or false", type(None): "nothing"}
    if get_origin(hint) is Literal:
        return " or ".join(repr(a) for a in get_args(hint))
    if get_origin(hint) is list:
        return f"a list ({_say(get_args(hint)[0])} each)"
    if get_origin(hint) is dict:
        return "names with values"
    if get_origin(hint) in (Union, types.UnionType):
        return " or ".join(dict.fromkeys(_say(a) for a in _arms(hint) if a is not type(None)))
    return names.get(hint, f"a {getattr(hint, '__name__', hint)}")


def _show(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 80 else text[:77] + "..."
