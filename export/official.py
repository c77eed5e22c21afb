"""Brings the authors' checkpoints in: pickles of StyleInV, of its pSp encoder, and of StyleGAN2-ADA.

    model = read_model("network-snapshot.pkl")     # nothing in the file is run; arrays are views into it
    write_checkpoint("model.safetensors", model)   # ours: from here export, stream and fine-tune work

and back: `official_tensors` gives every tensor of a checkpoint its name in the authors' files.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from styleinv.export.official_config import generator_config, image_config, inversion_config, styleinv_config
from styleinv.export.official_names import FREQUENCIES, Place, computed_tensors, tensor_table
from styleinv.export.official_pickle import NETWORK, read_official
from styleinv.export.official_settings import Network, as_network
from styleinv.export.pickle_values import Instance
from styleinv.runtime.bundle import file_sha256
from styleinv.runtime.errors import CheckpointError, ConfigError
from styleinv.training.checkpoint_file import write_file
from styleinv.training.config import Config

Array = npt.NDArray[Any]
PICTURE_NETWORKS = ("G_ema", "G")  # the moving average first: it draws the better pictures
MOTION_NETWORKS = ("SI_ema", "SI")
COMPUTED_TOLERANCE = 1e-5  # relative; tensors that follow from the configuration, computed on other machines


@dataclass(frozen=True)
class OfficialModel:
    """A model of the authors', with our configuration and our names; arrays are read-only views into its file."""

    path: Path
    kind: str
    config: Config
    tensors: Mapping[str, Array]
    parts: Mapping[str, str]  # part -> the network of the file that it was read from

    def provenance(self) -> dict[str, str]:
        """Where the model came from, for the checkpoint's metadata."""
        return {
            "imported_from": self.path.name,
            "sha256": file_sha256(self.path),
            "networks": ", ".join(self.parts.values()),
        }


def read_model(path: str | Path, *, network: str | None = None, transfer: bool = False) -> OfficialModel:
    """Reads a pickle of the authors'.

    A file with 'SI_ema' or 'SI' (and 'G') gives a whole model, one with 'pSp' an inversion model, others an image
    model.

    Args:
        network: the name of the network to take, such as 'G' or 'SI'; by default the moving average where there is one.
        transfer: mark an image model as a generator for style transfer.
    Raises: CheckpointError where the file is damaged, holds anything but data, holds no model, or one that we cannot
        compute; tensors that are missing, left over, of another shape or not finite are listed together.
    """
    path = Path(path)
    file = read_official(path)
    try:
        return _read_model(path, file, network, transfer)
    except (CheckpointError, ConfigError) as error:
        raise CheckpointError(f"{path}: {error}") from None


def _read_model(path: Path, file: Any, network: str | None, transfer: bool) -> OfficialModel:
    if not isinstance(file, dict):
        raise CheckpointError(f"found a value of type {type(file).__name__}, expected a dictionary of networks")
    if network is not None and network not in file:
        raise CheckpointError(f"found the networks {_listed(file)}, expected {network}")
    chosen = network or _first(file, *MOTION_NETWORKS, "pSp", *PICTURE_NETWORKS)
    if chosen is None:
        raise CheckpointError(f"found the networks {_listed(file)}, expected SI_ema, SI, pSp, G_ema or G")
    main = as_network(file[chosen], chosen)
    if transfer and main.class_name in ("StyleInV", "pSp"):
        raise CheckpointError(f"{chosen}: found a {main.class_name}, expected a Generator for style transfer")
    if main.class_name == "StyleInV":
        picture = _first(file, "G", "G_ema") or "G"
        networks = {"G": as_network(file.get(picture), picture), "SI": main}
        parts = {"G": picture, "SI": chosen}
        kind, config = "styleinv", styleinv_config(main, generator_config(networks["G"], picture), chosen)
    elif main.class_name == "pSp":
        networks, parts, kind = {"pSp": main}, {"pSp": chosen}, "inversion"
        inverted = generator_config(as_network(file["G"], "G"), "G") if _first(file, "G") else None
        config = inversion_config(main, inverted, chosen)
    elif main.class_name == "Generator":
        networks, parts, kind = {"G": main}, {"G": chosen}, "transfer" if transfer else "image"
        config = image_config(main, chosen)
    else:
        raise CheckpointError(f"{chosen}: found the class {main.class_name}, expected Generator, StyleInV or pSp")
    return OfficialModel(path, kind, config, _renamed(kind, config, networks), parts)


def write_checkpoint(path: str | Path, model: OfficialModel) -> None:
    """Writes our checkpoint, whole or not at all, straight from the file it was read from."""
    write_file(path, model.kind, model.config, model.tensors, model.provenance())


def describe_networks(path: str | Path) -> dict[str, dict[str, Any]]:
    """Every network of a pickle: its class and how many weights it has, whether or not it can be imported."""
    networks = {}
    file = read_official(path)
    for name, value in file.items() if isinstance(file, dict) else ():
        if isinstance(value, Instance) and value.kind == NETWORK:
            network = as_network(value, str(name))
            networks[str(name)] = {
                "class": network.class_name,
                "numbers": sum(a.size for a in network.tensors.values()),
            }
    return networks


def official_tensors(kind: str, config: Config, tensors: Mapping[str, Array]) -> dict[Place, Array]:
    """Every tensor of the authors' file for a checkpoint of ours, by part ('G', 'SI' or 'pSp') and name."""
    found = {place: tensors[entry.ours] for place, entry in tensor_table(kind, config.model).items()}
    for place, entry in tensor_table(kind, config.model).items():
        if entry.ours == FREQUENCIES:
            found[place] = tensors[FREQUENCIES][None]
    return found | computed_tensors(kind, config.model, tensors.get(FREQUENCIES))


def _renamed(kind: str, config: Config, networks: Mapping[str, Network]) -> dict[str, Array]:
    """The file's tensors under our names. All that does not fit is listed in one error."""
    found: dict[Place, Array] = {
        (part, name): array for part, network in networks.items() for name, array in network.tensors.items()
    }
    tensors: dict[str, Array] = {}
    problems: list[str] = []
    for place, entry in tensor_table(kind, config.model).items():
        array = found.pop(place, None)
        if array is not None and entry.ours == FREQUENCIES and array.shape == (1, *entry.shape):
            array = array[0]
        problems += _problems(place, array, entry.shape)
        if array is not None:
            tensors[entry.ours] = array
    for place, expected in computed_tensors(kind, config.model, tensors.get(FREQUENCIES)).items():
        array = found.pop(place, None)
        problems += _problems(place, array, expected.shape)
        if array is not None and array.shape == expected.shape and _differs(array, expected):
            problems.append(f"{'.'.join(place)}: found other values than follow from the settings")
    problems += [f"unexpected {'.'.join(place)} {list(array.shape)}" for place, array in found.items()]
    if problems:
        raise CheckpointError("tensors do not fit the settings in the file:\n  " + "\n  ".join(problems))
    return tensors


def _problems(place: Place, array: Array | None, shape: tuple[int, ...]) -> list[str]:
    """What is wrong with one tensor."""
    name = ".".join(place)
    if array is None:
        return [f"missing {name} {list(shape)}"]
    if array.shape != shape:
        return [f"{name}: found shape {list(array.shape)}, expected {list(shape)}"]
    expected = np.dtype(np.int64 if name.endswith("num_batches_tracked") else np.float32)
    if array.dtype != expected:
        return [f"{name}: found {array.dtype}, expected {expected}"]
    return [] if np.isfinite(array).all() else [f"{name}: holds values that are not finite"]


def _differs(array: Array, expected: Array) -> bool:
    """Whether a tensor is not the one that the settings ask for. All zero it may be: some files show a layout only."""
    return bool(array.any()) and not np.allclose(array, expected, rtol=COMPUTED_TOLERANCE, atol=0)


def _first(file: Mapping[Any, Any], *names: str) -> str | None:
    """The first of these names that has a value."""
    return next((name for name in names if file.get(name) is not None), None)


def _listed(file: Mapping[Any, Any]) -> str:
    """The names in a file, of the values that are there."""
    return ", ".join(str(name)[:40] for name, value in list(file.items())[:20] if value is not None) or "none"
