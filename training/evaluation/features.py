"""The network whose features a distance compares: any ONNX file from pictures, or from clips, to feature vectors.

Frames are resized to the network's input by PyTorch's bicubic interpolation (align_corners=False, without
antialiasing where frames grow, with it where they shrink), not rounded and not clamped, then scaled.

A distance is called FID over Inception and FVD over I3D alone, and only where the network is named so: by its file or
by the caller. Over any other network it is FD-NAME, such as FD-MobileNetV2. The TorchScript originals execute code, so
they are never loaded here; `CONVERSION` turns a copy that one trusts into ONNX.

Shapes: N pictures or clips, T frames of a clip, H W size of a frame, S size of the network's input, F features.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch.nn import functional as F

from styleinv.runtime.errors import CheckpointError, ConfigError, EngineError

SCALINGS = {  # name -> (mean, standard deviation) of a pixel from 0 to 1, of each colour
    "imagenet": ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
    "symmetric": ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5)),  # -1 to 1
    "unit": ((0.0, 0.0, 0.0), (1.0, 1.0, 1.0)),  # 0 to 1
    "bytes": ((0.0, 0.0, 0.0), (1 / 255, 1 / 255, 1 / 255)),  # 0 to 255, as the TorchScript originals take pictures
}
ORIGINALS = {"inception": "FID", "i3d": "FVD"}
SPELLED = {"mobilenetv2": "MobileNetV2"}
BATCH = 32  # pictures
CLIP_BATCH = 4
CONVERSION = """\
The TorchScript originals execute code when they are loaded, so convert only files from a source that you trust. With
the model's resolution R in pixels, the network's own resizing stays in use; of clips, give the frames too, 16 or 128:

  python -c "import torch; w = type('W', (torch.nn.Module,), {'forward': lambda self, x: self.m(x, \
return_features=True)})(); w.m = torch.jit.load('inception-2015-12-05.pt').eval(); x = torch.zeros(1, 3, R, R); \
torch.onnx.export(torch.jit.trace(w, x), (x,), 'inception.onnx', input_names=['image'], \
dynamic_axes={'image': {0: 'n'}}, opset_version=20, dynamo=False)"

  python -c "import torch; w = type('W', (torch.nn.Module,), {'forward': lambda self, x: self.m(x, rescale=True, \
resize=True, return_features=True)})(); w.m = torch.jit.load('i3d_torchscript.pt').eval(); \
x = torch.zeros(1, 3, 16, R, R); torch.onnx.export(torch.jit.trace(w, x), (x,), 'i3d.onnx', input_names=['clip'], \
dynamic_axes={'clip': {0: 'n'}}, opset_version=20, dynamo=False)"
"""


@dataclass(frozen=True, eq=False)
class FeatureNetwork:
    """Bytes to features: call it with frames uint8 [N, H, W, 3], or clips uint8 [N, T, H, W, 3]; float32 [N, F]."""

    path: Path
    distance: str  # what a Frechet distance over it is called
    scaling: str
    takes_clips: bool
    size: tuple[int | None, int | None]  # of its input; None where it takes any
    frames: int | None  # of its clips; None where it takes any number
    session: Any

    @classmethod
    def open(cls, path: str | Path, name: str | None = None, scaling: str | None = None) -> FeatureNetwork:
        """Load a network with input [N, 3, S, S] of pictures, or [N, 3, T, S, S] of clips.

        name: of the network; None takes that of its file, without '_features'.
        scaling: what pixels are scaled to, a name of `SCALINGS`; None is 'bytes' for networks that are named inception
            or i3d, and 'imagenet' for all others.
        Raises: CheckpointError where the file is no such network, ConfigError where there is no such scaling,
            EngineError where ONNX Runtime is not installed.
        """
        path = Path(path)
        name = name or path.stem.removesuffix("_features")
        scaling = scaling or ("bytes" if name.lower() in ORIGINALS else "imagenet")
        if scaling not in SCALINGS:
            raise ConfigError(f"scaling: found {scaling!r}, expected one of {', '.join(SCALINGS)}")
        session = _open_session(path)
        inputs, shape = session.get_inputs(), session.get_inputs()[0].shape
        if len(inputs) != 1 or inputs[0].type != "tensor(float)" or len(shape) not in (4, 5) or shape[1] != 3:
            found = ", ".join(f"{each.name} {each.type} {each.shape}" for each in inputs)
            raise CheckpointError(
                f"{path}: inputs: found {found}, expected one of float32 [N, 3, S, S] (pictures) or [N, 3, T, S, S] "
                "(clips)"
            )
        batch, _, *frames, height, width = (size if isinstance(size, int) else None for size in shape)
        if batch is not None:
            raise CheckpointError(f"{path}: inputs: found batches of {batch} alone, expected a dynamic batch size")
        takes_clips = bool(frames)
        original = ORIGINALS.get(name.lower())
        if original and takes_clips != (original == "FVD"):
            found = "clips" if takes_clips else "pictures"
            raise CheckpointError(f"{path}: name: found {name!r} for a network of {found}; give its own name")
        distance = original or f"FD-{SPELLED.get(name.lower(), name)}"
        return cls(path, distance, scaling, takes_clips, (height, width), frames[0] if frames else None, session)

    def __call__(self, frames: NDArray[np.uint8]) -> NDArray[np.float32]:
        """Features of frames or clips, bytes; CheckpointError where they are not finite or no vectors."""
        return np.concatenate([self._run(batch) for batch in _batches(frames, self.takes_clips)])

    def _run(self, frames: NDArray[np.uint8]) -> NDArray[np.float32]:
        name = self.session.get_inputs()[0].name
        features = np.asarray(self.session.run(None, {name: self.prepare(frames)})[0], np.float32)
        if len(features) != len(frames) or not np.isfinite(features).all():
            found = f"shape {list(features.shape)}" if len(features) != len(frames) else "values that are not finite"
            raise CheckpointError(f"{self.path}: output: found {found}, expected finite features [{len(frames)}, F]")
        return features.reshape(len(frames), -1)

    def prepare(self, frames: NDArray[np.uint8]) -> NDArray[np.float32]:
        """What the network sees: float32 [N, 3, S, S], or [N, 3, T, S, S] of clips."""
        flat = np.ascontiguousarray(frames.reshape(-1, *frames.shape[-3:]))
        pixels = torch.from_numpy(flat).permute(0, 3, 1, 2).float() / 255
        height, width = (size or found for size, found in zip(self.size, pixels.shape[2:], strict=True))
        if (height, width) != tuple(pixels.shape[2:]):
            shrinks = height < pixels.shape[2] or width < pixels.shape[3]
            pixels = F.interpolate(pixels, (height, width), mode="bicubic", align_corners=False, antialias=shrinks)
        mean, deviation = (torch.tensor(values)[:, None, None] for values in SCALINGS[self.scaling])
        pixels = (pixels - mean) / deviation
        if self.takes_clips:
            pixels = pixels.unflatten(0, frames.shape[:2]).transpose(1, 2)
        return np.ascontiguousarray(pixels.numpy())


def _batches(frames: NDArray[np.uint8], clips: bool) -> Iterator[NDArray[np.uint8]]:
    size = CLIP_BATCH if clips else BATCH
    return (frames[start : start + size] for start in range(0, len(frames), size))


def _open_session(path: Path) -> Any:
    if not path.is_file():
        raise CheckpointError(f"{path}: no such file, expected a feature network (.onnx)")
    try:
        import onnxruntime
    except ImportError as error:
        raise EngineError(
            "feature networks run in ONNX Runtime, which is not installed: `pip install 'styleinv[runtime-cpu]'`"
        ) from error
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    try:
        return onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    except Exception as error:  # ONNX Runtime has a class of its own for each way in which a file can be damaged
        raise CheckpointError(f"{path}: not a readable ONNX network: {error}") from error
