"""Hostile and broken files: each is refused with a CheckpointError, quickly, in little memory and without effect."""

import json
import subprocess
import sys

import numpy as np
import pytest
from hostile_files import CALLS, hostile_files
from official_files import generator_settings, network, official_file, write_pickle

from styleinv.export.official import read_model
from styleinv.runtime.errors import CheckpointError
from styleinv.training.config import Config, DiscriminatorConfig, GeneratorConfig, ModelConfig
from styleinv.training.model import build_generator

CONFIG = Config(
    preset="imported",
    discriminator=DiscriminatorConfig(join_resolution=16),
    model=ModelConfig(
        generator=GeneratorConfig(
            resolution=32, z_dim=24, w_dim=16, mapping_layers=2, channel_base=256, channel_max=16, conv_clamp=None,
            fp16_resolutions=0,
        )
    ),
)  # fmt: skip
SECONDS = 2.0
BYTES = 200 << 20

# Imports every file that its arguments name, in one process without torch: that is the baseline. Prints what happened.
RUNNER = """
import json, sys, time
from pathlib import Path
from styleinv.export.import_command import main
from styleinv.runtime.errors import CheckpointError

def memory(field):
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024 * int(next(line for line in lines if line.startswith(field)).split()[1])

for path in json.load(sys.stdin):
    Path("/proc/self/clear_refs").write_text("5")  # the peak is counted from here on
    baseline, begin = memory("VmRSS"), time.perf_counter()
    try:
        outcome = f"exit status {main([path, '--out', 'out/model.safetensors'])}"
    except CheckpointError as error:
        outcome = f"CheckpointError: {error}"
    except BaseException as error:
        outcome = f"{type(error).__name__}: {error}"
    seconds, peak = time.perf_counter() - begin, memory("VmHWM") - baseline
    print(json.dumps([outcome, seconds, peak, "torch" in sys.modules]), flush=True)
"""


def arrays(seed=0):
    """A model's tensors by our names."""
    model = build_generator(CONFIG.model.generator)
    draws = np.random.default_rng(seed)
    return {name: draws.standard_normal(tuple(tensor.shape), np.float32) for name, tensor in model.state_dict().items()}


def damaged(path, change):
    """The bytes of a file whose model was changed: `change` takes the arrays by our names, and the settings."""
    values, settings = arrays(), generator_settings(CONFIG.model.generator)

    def build(foreign):
        file = official_file("image", CONFIG, values, foreign)
        tensors = file["G"].entry["state"]
        change(tensors, settings)
        return {"G_ema": network_of(tensors, settings)}

    return write_pickle(path, build).read_bytes()


def network_of(state, settings):
    made = network("Generator", {}, keywords=settings)
    made.entry["state"] = {**state, "_init_kwargs": settings}
    return made


def at(state, name):
    """The dictionary that holds a tensor, and its name there."""
    *modules, last = name.split(".")
    for module in modules:
        state = state["_modules"][module].entry["state"]
    return state["_parameters"] if last in state["_parameters"] else state["_buffers"], last


def setting(name, value):
    def change(state, settings):
        group, _, last = name.rpartition(".")
        (settings[group] if group else settings)[last] = value

    return change


def tensor(name, edit):
    def change(state, settings):
        group, last = at(state, name)
        group[last] = edit(group[last])
        if group[last] is None:
            del group[last]

    return change


def fill(value):
    def edit(found):
        found.data.view(-1)[0] = value
        return found

    return edit


CHANGES = {
    "a weight that is not a number": tensor("synthesis.b8.conv0.weight", fill(float("nan"))),
    "an infinite weight": tensor("mapping.fc1.bias", fill(float("inf"))),
    "a weight of another shape": tensor("synthesis.b16.torgb.weight", lambda found: found[:, :3]),
    "a missing weight": tensor("mapping.fc0.weight", lambda found: None),
    "another filter": tensor("synthesis.b8.resample_filter", lambda found: found * 2),
    "a tensor of integers": tensor("mapping.w_avg", lambda found: found.long()),
    "fewer layers than weights": setting("mapping_kwargs.num_layers", 1),
    "resolution 48": setting("img_resolution", 48),
    "resolution 2^40": setting("img_resolution", 2**40),
    "z of -1": setting("z_dim", -1),
    "z that is a text": setting("z_dim", "512"),
    "ten million layers": setting("mapping_kwargs.num_layers", 10_000_000),
    "one channel": setting("img_channels", 1),
    "architecture resnet": setting("synthesis_kwargs.architecture", "resnet"),
    "architecture orig": setting("synthesis_kwargs.architecture", "orig"),
    "another activation": setting("mapping_kwargs.activation", "relu"),
    "another filter in the settings": setting("synthesis_kwargs.resample_filter", [1, 2, 1]),
    "an unknown setting": setting("synthesis_kwargs.magic", True),
    "a channel base of zero": setting("synthesis_kwargs.channel_base", 0),
}


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    folder = tmp_path_factory.mktemp("hostile")
    sound = write_pickle(folder / "sound.pkl", lambda foreign: official_file("image", CONFIG, arrays(), foreign))
    models = {name: damaged(folder / "damaged.pkl", change) for name, change in CHANGES.items()}
    (folder / "files").mkdir()
    files = hostile_files(folder / "files", sound.read_bytes(), models)
    work = folder / "work"
    (work / "out").mkdir(parents=True)
    run = subprocess.run(
        [sys.executable, "-c", RUNNER], input=json.dumps([str(path) for path in [sound, *files.values()]]),
        capture_output=True, text=True, cwd=work, timeout=600, check=False,
    )  # fmt: skip
    lines = [json.loads(line) for line in run.stdout.splitlines()]
    assert len(lines) == len(files) + 1, run.stderr
    return dict(zip(["sound", *files], lines, strict=True)), work


def names():
    """The names of the hostile files, which are written when the first test runs."""
    calls = [f"{form} {module}.{name}" for module, name, _ in CALLS for form in ("stack_global", "global")]
    return calls + list(CHANGES)


def test_the_sound_file_is_imported(results):
    outcome, _, _, torch_imported = results[0]["sound"]
    assert outcome == "exit status 0" and not torch_imported


def test_every_hostile_file_is_refused_by_name_quickly_and_in_little_memory(results):
    outcomes, _ = results
    hostile = {name: result for name, result in outcomes.items() if name != "sound"}
    assert len(hostile) > 140
    wrong = {name: result[0] for name, result in hostile.items() if not result[0].startswith("CheckpointError: /")}
    slow = {name: result[1] for name, result in hostile.items() if result[1] > SECONDS}
    large = {name: result[2] / 2**20 for name, result in hostile.items() if result[2] > BYTES}
    assert (wrong, slow, large) == ({}, {}, {})


def test_nothing_is_executed_and_nothing_is_left(results):
    _, work = results
    assert [path.name for path in work.iterdir()] == ["out"]
    assert [path.name for path in (work / "out").iterdir()] == ["model.safetensors"]  # of the sound file


@pytest.mark.parametrize("name", names())
def test_the_message_names_what_was_found(results, name):
    message = results[0][name][0]
    words = {
        "a weight that is not a number": ["G.synthesis.b8.conv0.weight", "not finite"],
        "an infinite weight": ["G.mapping.fc1.bias", "not finite"],
        "a weight of another shape": ["G.synthesis.b16.torgb.weight", "[3, 3, 1, 1]", "[3, 16, 1, 1]"],
        "a missing weight": ["missing G.mapping.fc0.weight"],
        "another filter": ["G.synthesis.b8.resample_filter"],
        "a tensor of integers": ["G.mapping.w_avg", "int64", "float32"],
        "fewer layers than weights": ["unexpected G.mapping.fc1.weight", "unexpected G.mapping.fc1.bias"],
        "architecture resnet": ["architecture", "'resnet'", "'skip'"],
        "an unknown setting": ["'magic'"],
    }.get(name)
    if words is None and " " in name and "." in name.split()[-1]:
        words = [name.split()[-1].partition(".")[0]]  # the module that the file names
    assert all(word in message for word in words or []), message


def test_names_are_those_of_the_files(results):
    assert set(names()) <= set(results[0])


def test_damage_anywhere_is_an_error_of_ours_or_harmless(tmp_path):
    """Bytes changed, cut out or repeated at random, most of them where the structure is."""
    path = write_pickle(tmp_path / "m.pkl", lambda foreign: official_file("image", CONFIG, arrays(), foreign))
    sound, draws = path.read_bytes(), np.random.default_rng(7)
    refused = 0
    for _ in range(300):
        content = bytearray(sound)
        for _ in range(draws.integers(1, 5)):
            start = int(draws.choice([0, len(content) - 3000, draws.integers(len(content))]))
            place = min(start + int(draws.integers(3000)), len(content) - 1)
            length = int(draws.integers(20))
            edits = [content[:length], b"", bytes([draws.integers(256)])]
            content[place : place + length] = edits[draws.integers(3)]
        path.write_bytes(content)
        try:
            read_model(path)
        except CheckpointError as error:
            refused += 1
            assert str(path) in str(error)
    assert refused > 200
