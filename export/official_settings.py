"""The networks in an authors' pickle: class name, settings and tensors, as plain data.

Each network is an object that `torch_utils.persistence` wrote: the class's source text, which is not looked at here,
and the module's attributes. Settings are what its constructor was given, in plain, dnnlib or omegaconf containers.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from styleinv.export.official_pickle import NETWORK
from styleinv.export.pickle_values import Instance
from styleinv.runtime.errors import CheckpointError

MOST_SETTINGS = 20_000  # values of one network's settings; modules and tensors of one network
LARGEST_SIZE = 2**31 - 1
DEEPEST = 40  # containers in each other
LONGEST_NAME = 100  # characters


@dataclass(frozen=True)
class Network:
    """One network of a file: what its constructor was given, and its parameters and buffers by name."""

    class_name: str
    positional: tuple[Any, ...]
    keywords: Mapping[str, Any]
    modules: Mapping[str, Any]
    tensors: Mapping[str, npt.NDArray[Any]]

    def child(self, name: str, where: str) -> Network:
        """The network stored as the attribute `name`. CheckpointError where it is none."""
        return as_network(self.modules.get(name), f"{where}.{name}")

    def settings(self, names: Sequence[str], where: str) -> Settings:
        """The constructor's arguments by name; `names` are those it has, in order."""
        if len(self.positional) > len(names):
            raise CheckpointError(
                f"{where}: found {len(self.positional)} arguments of {self.class_name}, expected at most {len(names)}"
            )
        values = dict(zip(names, self.positional, strict=False)) | dict(self.keywords)
        return Settings(values, where)


class Settings:
    """Settings with their place in the file, so that every error can name it. Keys that are None count as absent."""

    def __init__(self, values: Mapping[str, Any], where: str) -> None:
        self.values = {name: value for name, value in values.items() if value is not None}
        self.where = where

    def group(self, name: str) -> Settings:
        """The settings below `name`; empty where there are none."""
        value = self.values.get(name, {})
        if not isinstance(value, dict):
            raise self.error(name, "a group of settings")
        return Settings(value, f"{self.where}.{name}")

    def whole(self, name: str, default: int | None = None, minimum: int = 1, maximum: int = LARGEST_SIZE) -> int:
        value = self._value(name, default)
        if isinstance(value, float) and value.is_integer():
            value = int(value)
        if type(value) is not int or not minimum <= value <= maximum:
            raise self.error(name, f"a whole number from {minimum} to {maximum}")
        return value

    def number(self, name: str, default: float | None = None) -> float:
        value = self._value(name, default)
        if type(value) not in (int, float) or not math.isfinite(value) or value <= 0:
            raise self.error(name, "a number above 0")
        return float(value)

    def flag(self, name: str, default: bool) -> bool:
        value = self._value(name, default)
        if type(value) is not bool:
            raise self.error(name, "true or false")
        return value

    def require(self, name: str, *supported: Any, default: Any = None) -> Any:
        """The value, which must be one of those supported; others are refused by name."""
        value = self._value(name, default)
        if value not in supported or type(value) not in map(type, supported):
            raise self.error(name, " or ".join(map(repr, supported)) + "; other values are not supported")
        return value

    def only(self, *known: str) -> None:
        """Refuses settings of other names, which could change what a network computes."""
        unknown = sorted(set(self.values) - set(known))
        if unknown:
            raise CheckpointError(
                f"{self.where}: found the settings {', '.join(map(repr, unknown))}, expected only {', '.join(known)}"
            )

    def error(self, name: str, expected: str) -> CheckpointError:
        found = shortened(self.values.get(name)) if name in self.values else "nothing"
        return CheckpointError(f"{self.where}.{name}: found {found}, expected {expected}")

    def _value(self, name: str, default: Any) -> Any:
        return self.values.get(name, default)


def shortened(value: Any) -> str:
    """A value in a message: cut short, and containers by their kind only, since they may be endless."""
    if isinstance(value, (str, int, float, bool, type(None))):
        text = repr(value)
        return text if len(text) <= 80 else text[:77] + "..."
    return f"a value of type {type(value).__name__}"


def as_network(value: Any, where: str) -> Network:
    """A network from what the pickle holds. CheckpointError where it is something else, or damaged."""
    state, class_name = _persistent(value, where)
    tensors: dict[str, npt.NDArray[Any]] = {}
    _collect_tensors(state, "", tensors, where, [0])
    positional = plain(state.get("_init_args", ()), f"{where}._init_args")
    keywords = plain(state.get("_init_kwargs", {}), f"{where}._init_kwargs")
    if not isinstance(positional, list) or not isinstance(keywords, dict):
        raise CheckpointError(f"{where}: found no arguments of the constructor (_init_args, _init_kwargs)")
    return Network(class_name, tuple(positional), keywords, _group(state, "_modules", where), tensors)


def plain(value: Any, where: str) -> Any:
    """Settings as plain dictionaries, lists, texts and numbers. CheckpointError where they are anything else."""
    count = 0

    def converted(value: Any, depth: int) -> Any:
        nonlocal count
        count += 1
        if count > MOST_SETTINGS or depth > DEEPEST:
            raise CheckpointError(f"{where}: found settings without end, expected fewer than {MOST_SETTINGS}")
        if isinstance(value, Instance):
            return converted(_content(value, where), depth + 1)
        if isinstance(value, dict):
            return {str(key)[:LONGEST_NAME]: converted(item, depth + 1) for key, item in value.items()}
        if isinstance(value, (list, tuple)):
            return [converted(item, depth + 1) for item in value]
        if isinstance(value, (str, int, float, bool, type(None))):
            return value
        return shortened(value)  # arrays, types: no setting that decides what a network is

    return converted(value, 0)


def _content(node: Instance, where: str) -> Any:
    """What a container or a leaf of omegaconf holds."""
    if str(node.kind).startswith("omegaconf.") and isinstance(node.state, dict):
        for name in ("_content", "_val"):
            if name in node.state:
                return node.state[name]
    raise CheckpointError(f"{where}: found an object of {node.kind}, expected settings")


def _persistent(value: Any, where: str) -> tuple[dict[str, Any], str]:
    """The attributes and the class name of a network."""
    if not isinstance(value, Instance) or value.kind != NETWORK:
        raise CheckpointError(f"{where}: found {_described(value)}, expected a network")
    entry = value.arguments[0] if len(value.arguments) == 1 else None
    if not isinstance(entry, dict) or not isinstance(entry.get("state"), dict):
        raise CheckpointError(f"{where}: found a network without its attributes, expected a state")
    return entry["state"], str(entry.get("class_name"))[:80]


def _described(value: Any) -> str:
    if value is None:
        return "nothing"
    return f"an object of {value.kind}" if isinstance(value, Instance) else f"a value of type {type(value).__name__}"


def _collect_tensors(
    state: dict[str, Any], prefix: str, tensors: dict[str, npt.NDArray[Any]], where: str, count: list[int]
) -> None:
    """All parameters and buffers below a module, as `state_dict` names them."""
    count[0] += 1 + sum(len(_group(state, group, where)) for group in ("_parameters", "_buffers", "_modules"))
    if count[0] > MOST_SETTINGS or prefix.count(".") > DEEPEST:
        raise CheckpointError(f"{where}: found modules without end, expected fewer than {MOST_SETTINGS}")
    temporary = state.get("_non_persistent_buffers_set") or ()
    for group in ("_parameters", "_buffers"):
        for name, tensor in _group(state, group, where).items():
            if tensor is None or name in temporary:
                continue
            if not isinstance(tensor, np.ndarray):
                raise CheckpointError(f"{where}: {prefix}{name}: found {_described(tensor)}, expected a tensor")
            tensors[prefix + name] = tensor
    for name, module in _group(state, "_modules", where).items():
        if module is None:
            continue
        below = module.state if isinstance(module, Instance) and module.kind != NETWORK else None
        if not isinstance(below, dict):
            below, _ = _persistent(module, f"{where}.{prefix}{name}")
        _collect_tensors(below, f"{prefix}{name}.", tensors, where, count)


def _group(state: Mapping[str, Any], name: str, where: str) -> dict[str, Any]:
    group = state.get(name, {})
    if not isinstance(group, dict) or len(group) > MOST_SETTINGS:
        raise CheckpointError(f"{where}: {name}: found {_described(group)}, expected names and values")
    if not all(isinstance(key, str) and len(key) <= LONGEST_NAME for key in group):
        raise CheckpointError(f"{where}: {name}: found names that are no short texts")
    return group
