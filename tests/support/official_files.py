"""Makes pickles as the authors' code writes them, without their code: for tests of the import."""

from __future__ import annotations

import contextlib
import gzip
import json
import pickle
import shutil
import sys
import types
import typing
import zlib
from pathlib import Path
from unittest import mock

import numpy as np
import torch

from styleinv.export.official import official_tensors
from styleinv.export.official_pickle import official_builders
from styleinv.export.official_settings import as_network
from styleinv.export.pickle_machine import Machine
from styleinv.export.pickle_values import Budget
from styleinv.training.config import GeneratorConfig, MotionConfig

SMALL_GENERATOR = GeneratorConfig(
    resolution=32, z_dim=24, w_dim=512, mapping_layers=2, channel_base=256, channel_max=16, conv_clamp=None,
    fp16_resolutions=0,
)  # fmt: skip
SMALL_MOTION = MotionConfig(noise_dim=12, code_dim=10, anchor_distance=16, frequencies=6, min_period=16, max_period=128)
SOURCE = "raise RuntimeError('the source text inside a checkpoint must never be executed')"
BUFFERS = {
    "w_avg", "noise_const", "resample_filter", "freqs", "phase_scales", "latent_avg", "pca_mul", "running_mean",
    "running_var", "num_batches_tracked",
}  # fmt: skip


class Persistent:
    """Pickles as `torch_utils.persistence` pickles a network."""

    def __init__(self, class_name, state):
        self.entry = {"type": "class", "version": 6, "module_src": SOURCE, "class_name": class_name, "state": state}

    def __reduce__(self):
        return sys.modules["torch_utils.persistence"]._reconstruct_persistent_obj, (self.entry,)


def network(class_name, tensors, arguments=(), keywords=None, children=None):
    """A network from its tensors by name; `children` gives arguments of networks inside, by name."""
    state = {
        "training": False, "_parameters": {}, "_buffers": {}, "_non_persistent_buffers_set": set(), "_modules": {},
        "_init_args": arguments, "_init_kwargs": keywords or {},
    }  # fmt: skip
    below = {}
    for name, tensor in tensors.items():
        head, _, rest = name.partition(".")
        if rest:
            below.setdefault(head, {})[rest] = tensor
        elif head in BUFFERS:
            state["_buffers"][head] = tensor
        else:
            state["_parameters"][head] = torch.nn.Parameter(tensor, requires_grad=tensor.is_floating_point())
    for name, inside in below.items():
        state["_modules"][name] = network("Module", inside, **(children or {}).get(name, {}))
    return Persistent(class_name, state)


@contextlib.contextmanager
def foreign_modules():
    """Stand-ins for the modules that the authors' pickles name, so that Python's pickler can write them."""
    names = {
        "torch_utils.persistence": ["_reconstruct_persistent_obj"],
        "dnnlib.util": [],
        "omegaconf.dictconfig": ["DictConfig"],
        "omegaconf.listconfig": ["ListConfig"],
        "omegaconf.nodes": ["AnyNode"],
        "omegaconf.base": ["ContainerMetadata", "Metadata"],
    }
    made = {}
    for name, members in names.items():
        package, _, _ = name.partition(".")
        made.setdefault(package, types.ModuleType(package))
        made[name] = types.ModuleType(name)
        for member in members:
            kind = type(member, (), {"__module__": name})
            setattr(made[name], member, kind)
    easy = type("EasyDict", (dict,), {"__module__": "dnnlib.util"})
    made["dnnlib.util"].EasyDict = easy

    def reconstruct(_):
        raise AssertionError("only named, never called")

    reconstruct.__module__, reconstruct.__qualname__ = "torch_utils.persistence", "_reconstruct_persistent_obj"
    made["torch_utils.persistence"]._reconstruct_persistent_obj = reconstruct
    saved = {name: sys.modules.get(name) for name in made}
    sys.modules.update(made)
    try:
        yield types.SimpleNamespace(EasyDict=easy, omega=lambda value: _omega(value, made))
    finally:
        for name, module in saved.items():
            if module is None:
                del sys.modules[name]
            else:
                sys.modules[name] = module


def _omega(value, modules):
    """Settings as omegaconf holds them: values under _content, leaves under _val."""
    if isinstance(value, dict):
        node, attributes = (
            modules["omegaconf.dictconfig"].DictConfig(),
            {k: _omega(v, modules) for k, v in value.items()},
        )
        node.__dict__.update(_metadata=modules["omegaconf.base"].ContainerMetadata(), _parent=None, _content=attributes)
        node._metadata.__dict__.update(ref_type=typing.Any, object_type=dict, key_type=int, flags={"struct": False})
    elif isinstance(value, list):
        node = modules["omegaconf.listconfig"].ListConfig()
        node.__dict__.update(_parent=None, _content=[_omega(item, modules) for item in value])
    else:
        node = modules["omegaconf.nodes"].AnyNode()
        node.__dict__.update(_metadata=modules["omegaconf.base"].Metadata(), _parent=None, _val=value)
    return node


def write_pickle(path, build, protocol=4):
    """Writes what `build(foreign)` gives; `foreign` has EasyDict and omega (settings as omegaconf holds them)."""
    with foreign_modules() as foreign, Path(path).open("wb") as file:
        pickle.dump(build(foreign), file, protocol)
    return path


def golden_value(part, name, entry, constants):
    """The tensor that the rule of tests/golden/README.md gives."""
    key = f"{part}.{name}"
    if entry.get("constant"):
        return constants[key]
    draws = np.random.Generator(np.random.Philox(key=zlib.crc32(key.encode())))
    normal = draws.standard_normal(entry["shape"], dtype=np.float32)
    return np.float32(entry["mean"]) + np.float32(entry["std"]) * normal


def fill_layout(folder: Path, path: Path) -> Path:
    """Unpacks a golden folder's layout.pkl.gz to `path` and writes every tensor's values into it, in place."""
    with gzip.open(folder / "layout.pkl.gz") as packed, path.open("wb") as unpacked:
        shutil.copyfileobj(packed, unpacked)
    content = np.memmap(path, np.uint8, "r+")
    budget = Budget(data=len(content))
    with mock.patch("styleinv.export.pickle_machine.LARGE", 0):  # so that even scalars are views
        file = Machine(memoryview(content), official_builders(budget), budget).run()
    layout = json.loads((folder / "state_dict.json").read_text())
    with np.load(folder / "constants.npz") as constants:
        for part, entries in layout.items():
            arrays = as_network(file.get(part, file.get(f"{part}_ema")), part).tensors
            for name, entry in entries.items():
                start = _address(arrays[name]) - _address(content)  # arrays are views into the file
                value = np.asarray(golden_value(part, name, entry, constants), arrays[name].dtype)
                assert value.shape == arrays[name].shape and arrays[name].flags.c_contiguous
                content[start : start + value.nbytes] = np.frombuffer(value.tobytes(), np.uint8)
    content.flush()
    return path


def _address(array: np.ndarray) -> int:
    return array.__array_interface__["data"][0]


def generator_settings(config):
    """The constructor's keywords of the authors' Generator."""
    mapping = {"num_layers": config.mapping_layers, "lr_multiplier": config.mapping_lr_multiplier}
    if config.mapping_dim is not None:
        mapping["layer_features"] = config.mapping_dim
    if config.label_embedding_dim is not None:
        mapping["embed_features"] = config.label_embedding_dim
    synthesis = {
        "channel_base": config.channel_base, "channel_max": config.channel_max,
        "num_fp16_res": config.fp16_resolutions, "conv_clamp": config.conv_clamp, "use_noise": config.use_noise,
    }  # fmt: skip
    return {
        "z_dim": config.z_dim, "c_dim": config.label_dim, "w_dim": config.w_dim, "img_resolution": config.resolution,
        "img_channels": 3, "mapping_kwargs": mapping, "synthesis_kwargs": synthesis,
    }  # fmt: skip


def encoder_settings(config):
    """The constructor's keywords of the authors' StyleEncoderIntoW."""
    depths = {(3, 4, 14, 3): 50, (3, 13, 30, 3): 100, (3, 8, 36, 3): 152}
    modes = {"stage": "block", "bottleneck": "bottleneck"}
    return {
        "num_layers": depths[config.encoder.depths], "mode": "ir_se",
        "adain_mode": modes[config.encoder.temporal_blocks],
        "style_dim": config.motion.style_dim or config.generator.w_dim,
        "normalize_adain": config.encoder.normalize_residual, "lr_multiplier": config.encoder.lr_multiplier,
        "use_modulation": config.encoder.modulation == "convolution",
    }  # fmt: skip


def styleinv_settings(config):
    """The positional arguments and the keywords of the authors' StyleInV."""
    motion, encoder = config.model.motion, encoder_settings(config.model)
    mapping_options = {
        "c_dim": 0, "content_dim": config.model.generator.w_dim, "w_dim": encoder["style_dim"],
        "layers_after_fuse": motion.style_layers, "concat_content": motion.style_sees_content,
        "lr_multiplier": motion.style_lr_multiplier,
        "sampling": {"max_num_frames": 128, "total_dists": [1, 2, 4], "max_dist": config.motion.max_span},
        "motion": {
            "type": "acyclic_pe", "z_dim": motion.noise_dim, "v_dim": motion.code_dim,
            "motion_z_distance": motion.anchor_distance, "kernel_size": motion.kernel_size, "fourier": True,
            "gen_strategy": "conv" if motion.first_frame_aware else "abl_no_ffa",
            "time_enc": {
                "dim": motion.frequencies, "min_period_len": motion.min_period, "max_period_len": motion.max_period,
            },
        },
    }  # fmt: skip
    if config.model.recovered_motion_dim:
        mapping_options["motion_dim"] = config.model.recovered_motion_dim
    pca = {"use_pca": False}
    if config.model.encoder.pca_components:
        pca = {
            "use_pca": True, "n_pca": config.model.encoder.pca_components, "pca_lambda": config.model.encoder.pca_scale,
        }  # fmt: skip
    names = ("adain_mode", "normalize_adain", "lr_multiplier", "use_modulation")
    encoder_options = {**{name: encoder[name] for name in names}, "pca": pca}
    keywords = {
        "input_residual": config.model.input_residual, "clip_len": config.motion.clip_length, "fps": config.frame_rate,
        "mutual_recon": config.model.recovered_motion_dim > 0, "skip_encoder": config.model.skip_encoder,
    }  # fmt: skip
    return ("none", mapping_options, encoder_options), keywords


def official_file(kind, config, arrays, foreign):
    """The dictionary that the authors' code would pickle for one of our models; arrays by our names."""
    parts = {}
    for (part, name), array in official_tensors(kind, config, arrays).items():
        parts.setdefault(part, {})[name] = torch.from_numpy(np.ascontiguousarray(array).copy()).reshape(array.shape)
    generator = generator_settings(config.model.generator)
    if kind == "inversion":
        options = foreign.EasyDict(
            output_size=256, encoder_type="BackboneEncoderUsingLastLayerIntoW", start_from_latent_avg=True,
            learn_in_w=True, input_nc=3, n_styles=14,
        )  # fmt: skip
        backbone = {"encoder": {"arguments": (50, "ir_se", options)}}
        return {"training_set_kwargs": {}, "pSp": network("pSp", parts["pSp"], (options, 0), children=backbone)}
    file = {"G": network("Generator", parts["G"], keywords=generator)}
    if kind == "styleinv":
        (checkpoint, mapping, encoder), keywords = styleinv_settings(config)
        arguments = (checkpoint, foreign.omega(mapping), foreign.omega(encoder))
        children = {"encoder": {"keywords": encoder_settings(config.model)}}
        return {**file, "D": None, "SI_ema": network("StyleInV", parts["SI"], arguments, keywords, children)}
    return {"G_ema": network("Generator", parts["G"], keywords=foreign.EasyDict(generator)), **file}
