"""Launch parameters: the tables that come with the kernels, what is taken of them, and those of a GPU."""

import json

import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st
from layer_cases import DTYPES, examples

from styleinv.kernels import tiles
from styleinv.kernels.reference import polyphase_weight
from styleinv.kernels.tiles import DEFAULT, OPERATORS, Tile

PRODUCTS = ("ieee", "tf32", "tf32x3")
CONVOLUTIONS = ("modulated_conv2d", "modulated_conv2d_rgb", "modulated_conv2d_up2")
LAYER = (64, 32, 16, 16)


@pytest.fixture
def tables(tmp_path, monkeypatch):
    """A folder with the default tables and nothing else; what was read of others is forgotten, before and after."""
    for file in tiles.TABLES.glob(f"*.{DEFAULT}.json"):
        (tmp_path / file.name).write_text(file.read_text())
    monkeypatch.setattr(tiles, "TABLES", tmp_path)
    tiles.table.cache_clear()
    yield tmp_path
    tiles.table.cache_clear()


def is_power(size):
    return size > 0 and size & (size - 1) == 0


@pytest.mark.parametrize("dtype", ["float16", "float32"])
@pytest.mark.parametrize("operator", OPERATORS)
def test_default_tables_are_tiles_with_notes(operator, dtype):
    table = json.loads((tiles.TABLES / f"{operator}.{dtype}.{DEFAULT}.json").read_text())
    assert table["note"]
    for entry in table["entries"]:
        tile = Tile(**entry["tile"])
        assert all(is_power(size) for size in (tile.rows, tile.columns, tile.inputs, tile.outputs, tile.warps))
        assert tile.stages > 0 and tile.products in PRODUCTS
        bounds = entry.keys() - {"tile", "form", "fuse"}
        assert bounds <= {"inputs", "outputs", "height", "width", "pixels"}
        assert all(len(entry[bound]) == 2 for bound in bounds)
        assert ("form" in entry) == (operator == "modulated_conv2d_up2")
        assert ("fuse" in entry) == (operator == "modulated_conv2d_rgb")


@pytest.mark.parametrize("operator", OPERATORS)
@given(
    dtype=st.sampled_from(DTYPES),
    layer=st.tuples(st.integers(1, 2048), st.integers(1, 2048), st.integers(1, 2048), st.integers(1, 2048)),
)
@example(dtype=torch.float16, layer=(1, 1, 1, 1))
@example(dtype=torch.float32, layer=(2048, 2048, 2048, 2048))
@examples(100)
def test_any_layer_has_a_tile_that_fits(operator, dtype, layer):
    _, outputs, height, width = layer
    tile = tiles.tile_for(operator, dtype, layer)
    assert all(is_power(size) for size in (tile.rows, tile.columns, tile.inputs, tile.outputs))
    if operator in CONVOLUTIONS:  # products of matrices want 16 of each
        assert min(tile.pixels, tile.inputs, tile.outputs) >= 16
    if operator == "modulated_conv2d_rgb":
        assert tile.outputs >= outputs
    elif operator == "modulated_conv2d_up2":
        assert tiles.upsampling_form(dtype, layer) in ("polyphase", "two_steps")
    elif operator == "adain_lrelu":
        assert tile.columns < 2 * height * width and tile.outputs < 2 * outputs


@pytest.mark.parametrize("operator", CONVOLUTIONS)
def test_a_tile_is_no_larger_than_its_layer(operator):
    tile = tiles.fitted(Tile(16, 16, 64, 128, 8, 4, "tf32"), operator, (20, 17, 5, 3))
    assert tile == Tile(8, 4, 32, 32, 8, 4, "tf32")
    assert tiles.fitted(Tile(16, 16, 64, 128, 8, 4), operator, (1, 1, 1, 1)) == Tile(16, 1, 16, 16, 8, 4)


def test_the_first_entry_whose_bounds_hold_is_taken(tables):
    tile = {"rows": 4, "columns": 4, "inputs": 16, "outputs": 16, "warps": 1, "stages": 1}
    entries = [
        {"pixels": [None, 64], "inputs": [65, None], "tile": {**tile, "warps": 2}},
        {"pixels": [None, 64], "tile": {**tile, "warps": 4}},
        {"height": [9, 9], "outputs": [8, 8], "tile": {**tile, "warps": 8}},
    ]
    (tables / "modulated_conv2d.float32.gpu.json").write_text(json.dumps({"entries": entries}))

    def warps(*layer):
        return tiles.entry_for("modulated_conv2d", torch.float32, layer, "gpu")["tile"]["warps"]

    assert [warps(65, 8, 8, 8), warps(64, 8, 8, 8), warps(64, 8, 9, 8)] == [2, 4, 8]
    others = tiles.entry_for("modulated_conv2d", torch.float32, (64, 7, 9, 8))
    assert tiles.entry_for("modulated_conv2d", torch.float32, (64, 7, 9, 8), "gpu") == others  # none of the three holds


@pytest.mark.parametrize("operator", OPERATORS)
def test_an_unknown_device_has_the_default(operator):
    assert tiles.tile_for(operator, torch.float16, LAYER, "no_such") == tiles.tile_for(operator, torch.float16, LAYER)


def test_bfloat16_has_what_float16_has_until_it_has_its_own(tables):
    def tile(dtype):
        return tiles.tile_for("filter", dtype, LAYER, "gpu")

    def write(dtype, warps):
        entry = {"tile": {"rows": 4, "columns": 4, "inputs": 1, "outputs": 16, "warps": warps, "stages": 1}}
        (tables / f"filter.{dtype}.gpu.json").write_text(json.dumps({"entries": [entry]}))
        tiles.table.cache_clear()

    write("float16", 2)
    assert tile(torch.bfloat16) == tile(torch.float16) == Tile(4, 4, 16, 16, 2, 1)
    write("bfloat16", 1)
    assert (tile(torch.bfloat16).warps, tile(torch.float16).warps) == (1, 2)


def test_a_layer_of_which_no_table_speaks_is_named(tables):
    (tables / f"filter.float32.{DEFAULT}.json").write_text('{"entries": []}')
    with pytest.raises(KeyError, match=r"filter\.float32\.default\.json: no entry for"):
        tiles.tile_for("filter", torch.float32, LAYER)


def test_a_device_is_called_by_its_name(monkeypatch):
    assert tiles.device_name(torch.device("cpu")) == DEFAULT
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "NVIDIA RTX-A (80 GB)")
    assert tiles.device_name(torch.device("cuda", 0)) == "NVIDIA_RTX-A__80_GB_"


@pytest.mark.parametrize("form", ["polyphase", "two_steps"])
def test_an_upsampling_weight_has_the_form_of_the_table(form, tables):
    tile = {"rows": 4, "columns": 4, "inputs": 16, "outputs": 16, "warps": 1, "stages": 1}
    entry = {"form": form, "tile": tile}
    (tables / f"modulated_conv2d_up2.float32.{DEFAULT}.json").write_text(json.dumps({"entries": [entry]}))
    tiles.table.cache_clear()
    weight = torch.randn(5, 3, 3, 7, generator=torch.Generator().manual_seed(0))
    found = tiles.upsampling_weight(weight, 8, 8)
    expected = polyphase_weight(weight) if form == "polyphase" else weight.permute(3, 1, 2, 0)
    assert found.is_contiguous() and torch.equal(found, expected)


def test_pictures_are_fused_where_the_table_says_so():
    assert tiles.fuses_rgb(torch.float16, (32, 32, 64, 64))
    assert not tiles.fuses_rgb(torch.float16, (512, 512, 4, 4))
