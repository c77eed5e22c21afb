"""A tiny bundle whose graphs are simple arithmetic, so that numpy can say what must come out.

mapping    w0 = psi * z M                        synthesis  image = tanh(w S), frame = its uint8
content    features = mean of the image over H, W; prepared = image minus features
latent     w = w0 + v T + features C + mean of prepared^2
inversion  w0 = mean of the image over H, W, times C        a transfer: synthesis with another S
"""

import dataclasses
import json
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import save_file

from styleinv.runtime.sessions import obstacle

Z, W, U, F, KERNEL, SIZE = 8, 12, 6, 4, 5, 16
ANCHOR_DISTANCE = 16
MOTION = {
    "noise_dim": Z,
    "code_dim": U,
    "anchor_distance": ANCHOR_DISTANCE,
    "kernel_size": KERNEL,
    "lr_multiplier": 0.01,
    "frequencies": F,
    "max_period": 64.0,
    "min_period": 8.0,
}
FRAME = f"uint8[batch,{SIZE},{SIZE},3]"
IMAGE = f"float[batch,3,{SIZE},{SIZE}]"
ONNX_DTYPES = {"float": "float32", "uint8": "uint8"}

TO_IMAGE = f"""
    flat = MatMul(w, S)
    tall = Tanh(flat)
    size = Constant<value_ints = [-1, 3, {SIZE}, {SIZE}]>()
    image = Reshape(tall, size)
    scale = Constant<value_float = 127.5>()
    offset = Constant<value_float = 128.0>()
    low = Constant<value_float = 0.0>()
    high = Constant<value_float = 255.0>()
    scaled = Mul(image, scale)
    shifted = Add(scaled, offset)
    clipped = Clip(shifted, low, high)
    whole = Floor(clipped)
    levels = Cast<to = 2>(whole)
    frame = Transpose<perm = [0, 2, 3, 1]>(levels)
"""
TO_LATENT = """
    moved = MatMul(v, T)
    shifted_w = Add(w0, moved)
    seen = MatMul(features, C)
    sum = Add(shifted_w, seen)
    square = Mul(prepared, prepared)
    axes = Constant<value_ints = [1, 2, 3]>()
    energy = ReduceMean<keepdims = 0>(square, axes)
    one = Constant<value_ints = [1]>()
    column = Unsqueeze(energy, one)
    w = Add(sum, column)
"""
CONTENT_INPUTS = f"float[batch,3] features, {IMAGE} prepared, float[batch,{W}] w0, float[batch,{2 * F}] v"
GRAPHS = {
    "mapping": (
        f"float[batch,{Z}] z, float[batch] truncation_psi",
        f"float[batch,{W}] w0",
        "one = Constant<value_ints = [1]>() psi = Unsqueeze(truncation_psi, one) m = MatMul(z, M) w0 = Mul(psi, m)",
    ),
    "synthesis": (f"float[batch,{W}] w", f"{IMAGE} image, {FRAME} frame", TO_IMAGE),
    "content": (
        f"{IMAGE} image",
        f"float[batch,3] features, {IMAGE} prepared",
        """axes = Constant<value_ints = [2, 3]>()
        mean = ReduceMean(image, axes)
        features = ReduceMean<keepdims = 0>(image, axes)
        prepared = Sub(image, mean)""",
    ),
    "latent": (CONTENT_INPUTS, f"float[batch,{W}] w", TO_LATENT),
    "frame": (CONTENT_INPUTS, f"{FRAME} frame", TO_LATENT + TO_IMAGE),
    "inversion": (
        f"{IMAGE} image",
        f"float[batch,{W}] w0",
        """axes = Constant<value_ints = [2, 3]>()
        mean = ReduceMean<keepdims = 0>(image, axes)
        w0 = MatMul(mean, C)""",
    ),
}
KINDS = {
    "styleinv": ["mapping", "synthesis", "content", "latent", "frame"],
    "image": ["mapping", "synthesis"],
    "inversion": ["inversion"],
}


@dataclasses.dataclass
class TinyBundle:
    """A bundle folder and what it was made of; `transfers` holds the S of each."""

    path: Path
    weights: dict[str, np.ndarray]
    motion_tensors: dict[str, np.ndarray]
    transfers: dict[str, np.ndarray]

    def change_manifest(self, change: Callable[[dict[str, Any]], None]) -> None:
        """Changes the manifest and writes it with a digest that is right again."""
        from styleinv.runtime.bundle import write_manifest

        manifest = json.loads((self.path / "manifest.json").read_text())
        change(manifest)
        write_manifest(self.path, manifest)


@pytest.fixture(scope="session")
def motion_config() -> dict[str, Any]:
    return dict(MOTION)


@pytest.fixture(scope="session")
def motion_tensors() -> dict[str, np.ndarray]:
    return random_motion_tensors(np.random.default_rng(1))


@pytest.fixture(scope="session")
def make_bundle() -> Callable[..., TinyBundle]:
    """Writes a tiny bundle into a folder: make_bundle(folder, kind="styleinv", label_dim=0, inversion=False,
    transfers=(), precisions=())."""
    pytest.importorskip("onnx", reason="the tiny bundle's graphs are made with onnx")
    pytest.importorskip("onnxruntime", reason="the tiny bundle runs on onnxruntime")
    return write_bundle


@pytest.fixture(scope="session")
def tiny(make_bundle: Callable[..., TinyBundle], tmp_path_factory: pytest.TempPathFactory) -> TinyBundle:
    """A bundle of kind styleinv; not to be changed."""
    return make_bundle(tmp_path_factory.mktemp("bundles") / "sky.bundle")


@pytest.fixture(scope="session")
def styled(make_bundle: Callable[..., TinyBundle], tmp_path_factory: pytest.TempPathFactory) -> TinyBundle:
    """The same with an inversion graph and two transfers, ink and oil-2; not to be changed."""
    folder = tmp_path_factory.mktemp("bundles") / "styled.bundle"
    return make_bundle(folder, inversion=True, transfers=("oil-2", "ink"))


@pytest.fixture
def damaged(make_bundle: Callable[..., TinyBundle], tmp_path: Path) -> TinyBundle:
    """A bundle of kind styleinv that the test may damage."""
    return make_bundle(tmp_path / "sky.bundle")


@pytest.fixture(params=["openvino", "onnxruntime"])
def engine(request: pytest.FixtureRequest) -> str:
    """The name of each engine of a CPU in turn; skips those that this machine has not."""
    reason = obstacle(request.param, "fp32")
    if reason is not None:
        pytest.skip(reason)
    return request.param


@pytest.fixture
def no_player_is_left() -> Iterator[None]:
    """A test that leaves a player's thread behind fails."""
    before = set(threading.enumerate())
    yield
    assert not [thread for thread in set(threading.enumerate()) - before if thread.name == "styleinv player"]


def random_motion_tensors(generator: np.random.Generator) -> dict[str, np.ndarray]:
    def normal(*shape: int, scale: float = 1.0) -> np.ndarray:
        return (scale * generator.standard_normal(shape)).astype(np.float32)

    periods = 2.0 ** np.linspace(np.log2(MOTION["max_period"]), np.log2(MOTION["min_period"]), F)
    return {
        "first_code_noise": normal(Z),
        "conv.0.weight": normal(Z, Z, KERNEL, scale=100.0),
        "conv.0.bias": normal(Z, scale=20.0),
        "conv.1.weight": normal(U, Z, KERNEL, scale=100.0),
        "conv.1.bias": normal(U, scale=20.0),
        "frequencies": (2.0 * np.pi / periods).astype(np.float32),
        "period.weight": normal(F, U),
        "phase.weight": normal(F, U),
        "aligner.weight": normal(2 * F, U),
    }


def write_bundle(
    folder: Path,
    kind: str = "styleinv",
    label_dim: int = 0,
    inversion: bool = False,
    transfers: tuple[str, ...] = (),
    precisions: tuple[str, ...] = (),
) -> TinyBundle:
    """Graphs of `precisions` lie in folders of that name; they say it only in the manifest, and compute in fp32."""
    from styleinv.runtime.bundle import write_manifest

    folder.mkdir(parents=True)
    generator = np.random.default_rng(2)
    weights = {
        name: (generator.standard_normal(shape) / np.sqrt(shape[0])).astype(np.float32)
        for name, shape in {"M": (Z, W), "S": (W, 3 * SIZE * SIZE), "T": (2 * F, W), "C": (3, W)}.items()
    }
    names = [*KINDS[kind], "inversion"] if inversion else KINDS[kind]
    graphs = {name: write_graph(folder, name, weights, label_dim) for name in names}
    motion_tensors = random_motion_tensors(np.random.default_rng(1))
    if kind == "styleinv":
        save_file(motion_tensors, folder / "motion.safetensors")
    others = [path for path in sorted(folder.iterdir()) if path.suffix != ".onnx"]
    styles = {name: generator.standard_normal(weights["S"].shape).astype(np.float32) for name in transfers}
    in_precisions = {name: write_precision(folder, name, names, weights, label_dim, styles) for name in precisions}
    configuration = {"resolution": SIZE, "z_dim": Z, "w_dim": W, "label_dim": label_dim}
    write_manifest(
        folder,
        {
            "format_version": 1,
            "kind": kind,
            "frame_rate": 25.0,
            "noise": "const",
            "model": {"generator": configuration, "motion": MOTION, "encoder": {}, "input_residual": True},
            "graphs": graphs,
            "files": {path.name: file_entry(path) for path in others},
            "engines": [],
            "transfers": {name: write_transfer(folder, "", name, S) for name, S in styles.items()},
            "provenance": {},
            "verification": {},
            "probes": {},
            **({"precisions": in_precisions} if precisions else {}),
        },
    )
    return TinyBundle(folder, weights, motion_tensors, styles)


def write_precision(
    bundle: Path,
    precision: str,
    names: list[str],
    weights: dict[str, np.ndarray],
    label_dim: int,
    styles: dict[str, np.ndarray],
) -> dict[str, Any]:
    folder = bundle / precision
    folder.mkdir()
    graphs = {name: write_graph(folder, name, weights, label_dim, "weights.bin") for name in names}
    for name, graph in graphs.items():
        graph.update(file=f"{precision}/{name}.onnx", precision=precision)
    transfers = {name: write_transfer(bundle, f"{precision}/", name, S) for name, S in styles.items()}
    for transfer in transfers.values():
        transfer["synthesis"]["precision"] = precision
    file = f"{precision}/weights.bin"
    return {"graphs": graphs, "weights": {"file": file, **file_entry(bundle / file)}, "transfers": transfers}


def write_transfer(bundle: Path, prefix: str, name: str, S: np.ndarray) -> dict[str, Any]:
    place = f"{prefix}transfers/{name}"
    (bundle / place).mkdir(parents=True)
    entry = write_graph(bundle / place, "synthesis", {"S": S}, 0)
    weights = f"{place}/synthesis.bin"
    return {
        "synthesis": {**entry, "file": f"{place}/synthesis.onnx"},
        "weights": {"file": weights, **file_entry(bundle / weights)},
    }


def file_entry(file: Path) -> dict[str, Any]:
    from styleinv.runtime.bundle import file_sha256

    return {"sha256": file_sha256(file), "bytes": file.stat().st_size}


def write_graph(
    folder: Path, name: str, weights: dict[str, np.ndarray], label_dim: int, weights_file: str | None = None
) -> dict[str, Any]:
    import onnx

    from styleinv.runtime.bundle import file_sha256

    inputs, outputs, nodes = GRAPHS[name]
    if name == "mapping" and label_dim:
        inputs += f", float[batch,{label_dim}] label"
        nodes = nodes.replace("w0 = Mul(psi, m)", f"""
            x = Mul(psi, m)
            axes = Constant<value_ints = [1]>()
            ramp = Constant<value_floats = [{", ".join(str(float(i)) for i in range(label_dim))}]>()
            weighted = Mul(label, ramp)
            class = ReduceSum(weighted, axes)
            w0 = Add(x, class)""")  # fmt: skip
    model = onnx.parser.parse_model(
        f'<ir_version: 8, opset_import: ["" : 18]> {name} ({inputs}) => ({outputs}) {{{nodes}}}'
    )
    used = {tensor for node in model.graph.node for tensor in node.input}
    model.graph.initializer.extend(
        onnx.numpy_helper.from_array(array, key) for key, array in weights.items() if key in used
    )
    file = folder / f"{name}.onnx"
    if name in ("synthesis", "frame"):  # the one large tensor stands outside
        onnx.save_model(
            model,
            file,
            save_as_external_data=True,
            location=weights_file or f"{name}.bin",
            size_threshold=1024,
            convert_attribute=False,
        )
    else:
        onnx.save_model(model, file)
    onnx.checker.check_model(file)
    return {
        "file": file.name,
        "sha256": file_sha256(file),
        "precision": "fp32",
        "inputs": described(inputs),
        "outputs": described(outputs),
    }


def described(arrays: str) -> dict[str, Any]:
    """'float[batch,8] z, ...' as the manifest says it."""
    description = {}
    for array in arrays.split(", "):
        kind, name = array.split(" ")
        dtype, _, sizes = kind.rstrip("]").partition("[")
        shape = [int(size) if size.isdecimal() else size for size in sizes.split(",")]
        description[name] = {"dtype": ONNX_DTYPES[dtype], "shape": shape}
    return description
