"""Where a clip starts: what goes into the mapping network, or the latent given in place of what comes out of it.

Shapes: Z size of z, W size of a latent.
"""

from __future__ import annotations

import math
import numbers
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from styleinv.runtime.noise import Z_DOMAIN, standard_normal

if TYPE_CHECKING:
    from styleinv.runtime.sessions.base import Arrays


def mapping_inputs(
    generator: Mapping[str, Any], seed: int, z: npt.ArrayLike | None, truncation: float, label: int | None
) -> Arrays:
    """The inputs of the graph `mapping`, a batch of one, from the arguments of a `Rollout`.

    Args:
        generator: the bundle's configuration of it.
    Raises: ValueError where an argument is out of range.
    """
    return {
        "z": _checked_z(z, seed, generator["z_dim"]),
        "truncation_psi": np.array([_checked_truncation(truncation)], np.float32),
        **_checked_label(label, generator["label_dim"]),
    }


def given_latent(generator: Mapping[str, Any], w0: npt.ArrayLike) -> npt.NDArray[np.float32]:
    """A copy of w0, float32 [W]. Raises ValueError where it does not fit the generator."""
    return _checked_row("w0", w0, generator["w_dim"])


def check_alone(given: str, **others: object) -> None:
    """Raises ValueError where another argument says something, too: `given` stands in for the mapping network's output.
    An argument that says nothing is None; a truncation of 1 is nothing said."""
    for name, value in others.items():
        if value is not None and not (name == "truncation" and value == 1.0):
            found = "one" if name in ("z", "w0", "image") else repr(value)
            raise ValueError(
                f"{name}: found {found}, expected none: {given} stands in for the mapping network's output"
            )


def _checked_z(z: npt.ArrayLike | None, seed: int, z_dim: int) -> npt.NDArray[np.float32]:
    """z as the mapping graph takes it: float32 [1, Z]."""
    return _checked_row("z", standard_normal(seed, Z_DOMAIN, 0, z_dim) if z is None else z, z_dim)[None]


def _checked_row(name: str, values: npt.ArrayLike, count: int) -> npt.NDArray[np.float32]:
    row = np.array(values, np.float32)
    if row.shape != (count,) or not np.isfinite(row).all():
        found = f"shape {list(row.shape)}" if row.shape != (count,) else "numbers that are not finite"
        raise ValueError(f"{name}: found {found}, expected {count} finite numbers")
    return row


def _checked_truncation(truncation: float) -> float:
    if isinstance(truncation, bool) or not isinstance(truncation, numbers.Real) or not math.isfinite(truncation):
        raise ValueError(f"truncation: found {truncation!r}, expected a finite number")
    return float(truncation)


def _checked_label(label: int | None, label_dim: int) -> Arrays:
    """The mapping graph's label input, one-hot float32 [1, label_dim]; nothing where the model is unconditional."""
    if label_dim == 0 and label is None:
        return {}
    if isinstance(label, bool) or not isinstance(label, numbers.Integral) or label not in range(label_dim):
        expected = f"a class from 0 to {label_dim - 1}" if label_dim else "None: the model is unconditional"
        raise ValueError(f"label: found {label!r}, expected {expected}")
    one_hot = np.zeros((1, label_dim), np.float32)
    one_hot[0, label] = 1.0
    return {"label": one_hot}
