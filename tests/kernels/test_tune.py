"""`styleinv kernels tune`, with a timer that computes its times: what is tried, what is chosen, what is written."""

import json
import os
import subprocess
import sys
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from styleinv.kernels import cli, launch, tiles, tuned_tables
from styleinv.kernels.candidates import candidates
from styleinv.kernels.networks import NETWORKS, counted, layer_calls, network_of
from styleinv.kernels.plan import Call, Network, fused_calls, moved
from styleinv.kernels.random_operands import as_tuned, moved_by, random_operands, run
from styleinv.kernels.search import UnfitError, fastest, prepare_on
from styleinv.kernels.tiles import OPERATORS, Tile, fitted, tile_for
from styleinv.kernels.tune import Tuning, tune
from styleinv.kernels.tuned_tables import write_entry

SMALL = Network(16, channel_base=256, channel_max=32, w_dim=12)
LAYERS = {  # what the table of each operator must have for SMALL
    "modulated_conv2d": [(16, 16, 16, 16), (32, 32, 4, 4), (32, 32, 8, 8)],
    "modulated_conv2d_rgb": [(16, 16, 16, 16), (32, 32, 4, 4), (32, 32, 8, 8)],
    "modulated_conv2d_up2": [(32, 16, 8, 8), (32, 32, 4, 4)],
    "filter": [(16, 16, 8, 8), (32, 32, 4, 4)],
    "to_rgb_skip": [(16, 3, 16, 16), (32, 3, 4, 4), (32, 3, 8, 8)],
    "adain_lrelu": [(64, 64, 8, 8), (128, 128, 4, 4), (256, 256, 2, 2)],
}
HALVES = [torch.float16, torch.bfloat16]


def cost(tile):
    """Milliseconds of a tile: those near 32 pixels and many warps are fast; no two tiles are equal."""
    return abs(tile.pixels - 32) + 1 / tile.warps + tile.outputs / 1e3 + tile.inputs / 1e6 + tile.stages / 1e9


def prepare_with(extra=lambda call, form, tile: 0.0):
    return lambda call, network, form: lambda tile: cost(tile) + extra(call, form, tile)


def tuning(folder, **changes):
    fields = {
        "network": SMALL,
        "device": "A_GPU",
        "folder": folder,
        "prepare": prepare_with(),
        "tell": lambda line: None,
    }
    return Tuning(**(fields | changes))


def entries(folder, operator, dtype="float16", device="A_GPU"):
    return json.loads((folder / f"{operator}.{dtype}.{device}.json").read_text())["entries"]


def layer_of(entry):
    bounds = [entry[name] for name in ("inputs", "outputs", "height", "width")]
    assert all(least == most for least, most in bounds)
    return tuple(least for least, _ in bounds)


def test_the_fastest_tile_of_each_layer_is_written(tmp_path):
    tune(tuning(tmp_path, facts={"device": "A GPU", "driver": "1.2"}))
    for operator, layers in LAYERS.items():
        found = entries(tmp_path, operator)
        assert [layer_of(entry) for entry in found] == layers
        for entry in found:
            default = tile_for(operator, torch.float16, layer_of(entry))
            tried = candidates(operator, torch.float16, layer_of(entry), default)
            assert len(tried) > 1 and Tile(**entry["tile"]) == min(tried, key=cost), entry
            assert entry["measured"]["default_milliseconds"] >= entry["measured"]["milliseconds"]
            assert (entry["measured"]["device"], entry["measured"]["driver"]) == ("A GPU", "1.2")


@pytest.mark.parametrize("dtype", [*HALVES, torch.float32])
def test_operators_find_what_was_written(tmp_path, monkeypatch, dtype):
    layer = (32, 32, 8, 8)
    for table in tiles.TABLES.glob("*.default.json"):
        (tmp_path / table.name).write_bytes(table.read_bytes())
    monkeypatch.setattr(tiles, "TABLES", tmp_path)
    tiles.table.cache_clear()
    before = tile_for("modulated_conv2d", dtype, layer, "A_GPU")
    tune(tuning(tmp_path, network=replace(SMALL, dtype=dtype)))
    after = tile_for("modulated_conv2d", dtype, layer, "A_GPU")
    assert after == Tile(**entries(tmp_path, "modulated_conv2d", tiles.dtype_name(dtype))[2]["tile"]) != before
    assert tile_for("modulated_conv2d", dtype, layer) == before  # of the default device
    other = (33, 32, 8, 8)
    assert tile_for("modulated_conv2d", dtype, other, "A_GPU") == tile_for("modulated_conv2d", dtype, other)
    tiles.table.cache_clear()


@pytest.mark.parametrize(("form", "fuse"), [("polyphase", True), ("two_steps", False)])
def test_the_faster_of_two_ways_is_chosen(tmp_path, form, fuse):
    def extra(call, tried, tile):
        slow_form = call.operator == "modulated_conv2d_up2" and tried != form
        slow_picture = call.operator in ("modulated_conv2d_rgb", "modulated_conv2d_frame") and not fuse
        return 1000.0 * (slow_form or slow_picture)

    tune(tuning(tmp_path, prepare=prepare_with(extra)))
    assert {entry["form"] for entry in entries(tmp_path, "modulated_conv2d_up2")} == {form}
    assert {entry["fuse"] for entry in entries(tmp_path, "modulated_conv2d_rgb")} == {fuse}
    for entry in entries(tmp_path, "modulated_conv2d_up2"):
        found = entry["measured"]
        assert (found["milliseconds"] <= found["two_steps_milliseconds"]) == (form == "polyphase")


def test_each_kernel_is_measured_as_the_network_calls_it(tmp_path):
    seen = []
    tune(tuning(tmp_path, prepare=lambda call, network, form: seen.append((call, form)) or cost))
    first = [(call.operator, call.layer, call.styled, call.next_styled) for call, _ in seen[:5]]
    assert first == [
        ("modulated_conv2d", (32, 32, 4, 4), True, False),  # the constant was multiplied by no style before
        ("to_rgb_skip", (32, 3, 4, 4), True, False),
        ("modulated_conv2d_rgb", (32, 32, 4, 4), True, True),
        ("modulated_conv2d_up2", (32, 32, 4, 4), False, True),
        ("modulated_conv2d_up2", (32, 32, 4, 4), False, True),
    ]
    assert [form for _, form in seen[3:5]] == ["polyphase", "two_steps"]
    assert [call.operator for call, _ in seen[-6:-3]] == [
        "modulated_conv2d", "to_rgb_skip_frame", "modulated_conv2d_frame",
    ]  # fmt: skip


def test_tiles_that_are_unfit_are_left_out_and_told(tmp_path):
    lines = []

    def extra(call, form, tile):
        default = tile_for("to_rgb_skip", torch.float16, call.layer)
        if call.operator in ("modulated_conv2d_rgb", "modulated_conv2d_frame"):
            raise UnfitError("out of resource: shared memory")
        if call.operator.startswith("to_rgb_skip") and tile == default:
            raise UnfitError("found an error of 1.0e+00, expected at most 0.004")
        return 0.0

    tune(tuning(tmp_path, prepare=prepare_with(extra), tell=lines.append))
    for entry in entries(tmp_path, "to_rgb_skip"):
        assert entry["measured"]["default_milliseconds"] is None
        assert Tile(**entry["tile"]) != tile_for("to_rgb_skip", torch.float16, layer_of(entry))
    # The kernel that makes the picture as well is never fit: layers go without it, and the table says so.
    layers = {layer_of(entry): entry["fuse"] for entry in entries(tmp_path, "modulated_conv2d_rgb")}
    assert layers == dict.fromkeys(LAYERS["modulated_conv2d_rgb"], False)
    assert any("left out: found an error of 1.0e+00" in line for line in lines)
    assert "modulated_conv2d_rgb float16 32 -> 32 at 4 x 4: no tile is fit" in lines


def test_nothing_is_written_where_nothing_is_fit(tmp_path):
    def extra(call, form, tile):
        raise UnfitError("no such GPU")

    tune(tuning(tmp_path, prepare=prepare_with(extra)))
    assert list(tmp_path.iterdir()) == []


def test_what_is_finished_stays_after_ctrl_c(tmp_path):
    def extra(call, form, tile):
        if call.layer == (32, 32, 8, 8):
            raise KeyboardInterrupt
        return 0.0

    with pytest.raises(KeyboardInterrupt):
        tune(tuning(tmp_path, prepare=prepare_with(extra)))
    assert [layer_of(entry) for entry in entries(tmp_path, "modulated_conv2d")] == [(32, 32, 4, 4)]
    assert [layer_of(entry) for entry in entries(tmp_path, "filter")] == [(32, 32, 4, 4)]
    assert all(file.name.endswith(".A_GPU.json") for file in tmp_path.iterdir())


@pytest.mark.parametrize(
    ("asked", "searched"),
    [
        ("to_rgb_skip", {"to_rgb_skip", "to_rgb_skip_frame"}),
        ("modulated_conv2d_up2", {"modulated_conv2d_up2"}),
        (
            "modulated_conv2d_rgb",
            {"modulated_conv2d", "to_rgb_skip", "to_rgb_skip_frame", "modulated_conv2d_rgb", "modulated_conv2d_frame"},
        ),
    ],
)
def test_one_operator(tmp_path, asked, searched):
    seen = set()
    prepare = lambda call, network, form: seen.add(call.operator) or cost  # noqa: E731
    tune(tuning(tmp_path, prepare=prepare, operators=(asked,)))
    assert [file.name for file in tmp_path.iterdir()] == [f"{asked}.float16.A_GPU.json"]
    assert seen == searched


def test_when_time_is_over_the_default_was_tried():
    tried = [Tile(8, 8, 32, 32, warps, 2) for warps in (8, 4)]
    found = fastest(tried, cost, seconds=0.0, tell=print)
    assert (found.tile, found.tried, found.milliseconds) == (tried[0], 1, found.default_milliseconds)
    assert fastest(tried, cost, seconds=60.0, tell=print).tried == 2


@settings(deadline=None, max_examples=40)
@given(
    st.sampled_from(OPERATORS),
    st.sampled_from([*HALVES, torch.float32]),
    st.tuples(st.integers(1, 600), st.integers(1, 600), st.integers(1, 70), st.integers(1, 70)),
)
def test_candidates_fit_the_layer(operator, dtype, layer):
    default = tile_for(operator, dtype, layer)
    tried = candidates(operator, dtype, layer, default, shared_bytes=48 * 1024)
    assert tried[0] == default and len(set(tried)) == len(tried)
    assert all(fitted(tile, operator, layer) == tile for tile in tried)
    for tile in tried[1:]:
        loaded = tile.stages * (tile.pixels + tile.outputs) * tile.inputs * dtype.itemsize
        assert not operator.startswith("modulated_conv2d") or loaded <= 48 * 1024
        assert tile.products == "ieee" or dtype is torch.float32


def test_an_entry_replaces_its_own_layer_alone(tmp_path):
    file = tmp_path / "filter.float16.A_GPU.json"
    broad = {"outputs": [None, 64], "tile": {"warps": 1}}
    file.write_text(json.dumps({"note": "mine", "entries": [broad]}))
    for layer, warps in (((8, 8, 4, 4), 2), ((8, 8, 2, 2), 4), ((8, 8, 4, 4), 8)):
        assert write_entry(tmp_path, "filter", "float16", "A_GPU", layer, {"tile": {"warps": warps}}) == file
    table = json.loads(file.read_text())
    assert table["note"] == "mine" and table["entries"][-1] == broad
    assert [(layer_of(entry)[2], entry["tile"]["warps"]) for entry in table["entries"][:-1]] == [(2, 4), (4, 8)]


@pytest.mark.parametrize("content", ["", "[]", "{}", '{"note": "", "entries": 3}', '{"note": "", "entries": [3]}'])
def test_a_table_that_is_none_is_not_overwritten(tmp_path, content):
    file = tmp_path / "filter.float16.A_GPU.json"
    file.write_text(content)
    with pytest.raises(ValueError, match=r"filter\.float16\.A_GPU\.json: found .*, expected a tuning table"):
        write_entry(tmp_path, "filter", "float16", "A_GPU", (8, 8, 4, 4), {"tile": {}})
    assert file.read_text() == content


def test_a_failing_write_leaves_the_table_as_it_was(tmp_path, monkeypatch):
    file = write_entry(tmp_path, "filter", "float16", "A_GPU", (8, 8, 4, 4), {"tile": {}})
    before = file.read_bytes()

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(tuned_tables.Path, "replace", full)
    with pytest.raises(OSError, match="No space left"):
        write_entry(tmp_path, "filter", "float16", "A_GPU", (8, 8, 2, 2), {"tile": {}})
    assert list(tmp_path.iterdir()) == [file] and file.read_bytes() == before


def test_the_launcher_takes_the_tile_that_is_tried():
    tile, other = Tile(4, 4, 16, 16, 4, 2), Tile(4, 4, 32, 32, 4, 2)
    call, looked_up = Call("modulated_conv2d", (8, 8, 4, 4), styled=True), []

    def compute(operator, operands):
        looked_up.append(launch.tile_for(operator, torch.float32, (8, 8, 4, 4), "A_GPU"))
        (result,) = run(operator, operands)
        return (result + 1e-3 if looked_up[-1] == other else result,)

    def timer(functions):
        for function in functions:
            function()
        return [[3.0, 1.0, 2.0] for _ in functions]

    measure = prepare_on(torch.device("cpu"), timer, compute)(call, replace(SMALL, dtype=torch.float32), "polyphase")
    assert measure(tile) == 2.0 and looked_up == [tile, tile]
    with pytest.raises(UnfitError, match=r"found an error of .*e-0\d, expected at most 2e-05"):
        measure(other)
    assert launch.tile_for is tile_for


INTERPRETED = """
import torch
from dataclasses import replace
from styleinv.kernels import launch
from styleinv.kernels.operands import Epilogue
from styleinv.kernels.plan import Call, Network
from styleinv.kernels.search import UnfitError, prepare_on
from styleinv.kernels.tiles import Tile

def compute(operator, operands):
    x, weight, style = (operands.pop(name) for name in ("x", "weight", "style"))
    layer = launch.upsampling_layer if operator.endswith("up2") else launch.modulated_layer
    return (layer(x, weight, style, Epilogue(**operands)),)

def once(functions):
    return [[float(function() is not None)] for function in functions]

network = Network(8, 64, 8, dtype=torch.float32)
for operator in ("modulated_conv2d", "modulated_conv2d_up2"):
    for form in ("polyphase", "two_steps"):
        call = Call(operator, (5, 7, 4, 4), styled=True, next_styled=True)
        measure = prepare_on(torch.device("cpu"), once, lambda name, operands: compute(name, dict(operands)))
        measure = measure(call, network, form)
        for tile in (Tile(4, 4, 16, 16, 4, 2), Tile(2, 8, 16, 32, 4, 2)):
            assert measure(tile) == 1.0
        try:
            measure(Tile(3, 5, 16, 16, 4, 2))  # no powers of two: it does not compile
        except UnfitError as error:
            print(operator, form, error)
"""


def test_the_kernels_themselves_are_held_to_the_reference():
    environment = {**os.environ, "TRITON_INTERPRET": "1"}
    command = [sys.executable, "-c", INTERPRETED]
    finished = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert finished.returncode == 0, finished.stderr
    assert len(finished.stdout.splitlines()) == 4, finished.stdout


@pytest.mark.parametrize("name", NETWORKS)
def test_layers_are_the_plan_with_steps_joined(name):
    network = NETWORKS[name]
    calls, plan = layer_calls(network), fused_calls(network)
    assert moved(calls) == moved(plan)
    assert sum(call.flops for call in calls) == sum(call.flops for call in plan)
    assert "transposed" in {call.operator for call in plan}
    assert {call.operator for call in calls}.isdisjoint({"transposed", "filter", "times style"})
    ups = [call.layer[2] for call in calls if call.operator == "modulated_conv2d_up2"]
    assert ups == [resolution // 2 for resolution in network.resolutions()[1:]]
    assert sum(counted([*calls, *calls]).values()) == 2 * len(calls)


@pytest.mark.parametrize("batch", [1, 3])
def test_bytes_are_those_of_operands_and_results(batch):
    seen = set()
    for call in layer_calls(SMALL):
        operands = as_tuned(call, random_operands(call, SMALL, batch, torch.device("cpu")))
        tensors = [value for value in operands.values() if isinstance(value, torch.Tensor)]
        held = sum(tensor.nbytes for tensor in [*tensors, *run(call.operator, operands)])
        if call.operator == "style_demod":  # its two kernels hand styles over
            held += 2 * 4 * batch * sum(operands["inputs"])
        assert moved_by(call, operands, batch) == held, call
        seen.add(call.operator)
    assert seen == {"style_demod", "modulated_conv2d_rgb", "modulated_conv2d_up2", "modulated_conv2d_frame"}


@pytest.mark.parametrize(
    "text", ["paper", "256", "256,16384", "255,16384,512", "256,x,512", "256,128,512", "2,64,64", ""]
)
def test_networks_that_are_none(text):
    with pytest.raises(ValueError, match=f"network: found '{text}', expected "):
        network_of(text)


def test_a_network_by_its_numbers():
    assert network_of("512,32768,256") == Network(512, 32768, 256)


@pytest.mark.skipif(torch.cuda.is_available(), reason="PyTorch finds a GPU")
def test_no_gpu(capsys, tmp_path):
    assert cli.main(["tune", "--out", str(tmp_path / "tables")]) == 2
    assert "styleinv kernels: error: tune: found no CUDA device, expected one: torch " in capsys.readouterr().err
    assert not (tmp_path / "tables").exists()


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="PyTorch finds no GPU")
def test_on_a_gpu(tmp_path, capsys):
    arguments = ["tune", "--network", "8,256,32", "--seconds-per-layer", "5", "--out", str(tmp_path)]
    assert cli.main([*arguments, "--operator", "modulated_conv2d_up2", "to_rgb_skip"]) == 0
    device = tiles.device_name(torch.device("cuda"))
    (entry,) = entries(tmp_path, "modulated_conv2d_up2", device=device)
    assert entry["measured"]["milliseconds"] > 0 and entry["measured"]["two_steps_milliseconds"] > 0
    assert entry["measured"]["device"] == torch.cuda.get_device_name()
    assert len(entries(tmp_path, "to_rgb_skip", device=device)) == 2, capsys.readouterr().err
