"""Kernels compiled ahead of time for GPUs that are not here: what they take, and that the committed table says so."""

import json
import shutil
from dataclasses import astuple, fields, replace

import pytest
import triton

from styleinv.kernels import aot, compiled, tiles
from styleinv.kernels.compiled import COMMAND, Row
from styleinv.kernels.launches import launches_of
from styleinv.kernels.resources import LIMITS, Resources, instruction, occupancy, resources

MEASURED = ("warps", "stages", "registers", "spilled", "shared", "occupancy", "instruction", "triton", "source")
TENSOR_CORES = ("HMMA", "HGMMA", "UTCHMMA")
SAMPLE = [  # operator, dtype, inputs, outputs, height, target: each kernel, each target
    ("modulated_conv2d", "float16", 512, 512, 32, 100),
    ("modulated_conv2d", "float32", 512, 512, 4, 86),
    ("modulated_conv2d_rgb", "float16", 128, 128, 128, 90),
    ("modulated_conv2d_frame", "bfloat16", 64, 64, 256, 120),
    ("modulated_conv2d_up2", "float16", 128, 64, 128, 89),
    ("filter", "bfloat16", 256, 256, 32, 80),
    ("to_rgb_skip", "float16", 512, 3, 32, 120),
    ("adain_lrelu", "bfloat16", 128, 128, 64, 86),
    ("style_demod", "float16", 512, 7424, 1, 80),
]


@pytest.fixture(autouse=True)
def _own_cache(monkeypatch, tmp_path):
    """So that what is tested is compiled now."""
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))


@pytest.fixture(scope="module")
def table():
    return compiled.read()


@pytest.fixture(scope="module")
def matrix():
    return aot.jobs()


def job_of(matrix, operator, dtype, inputs, outputs, height):
    found = [
        job for job in matrix
        if (job.call.operator, aot.dtype_name(job.network.dtype)) == (operator, dtype)
        and job.call.layer[:3] == (inputs, outputs, height)
    ]  # fmt: skip
    return found[0]


def key(row):
    """What a row says without compiling anything."""
    return tuple(getattr(row, field.name) for field in fields(Row) if field.name not in MEASURED)


def same_compiler(table):
    if table[0].triton != triton.__version__:
        pytest.skip(
            f"compiled.csv is of Triton {table[0].triton}, installed is {triton.__version__}, which may take other "
            "registers; what does not depend on it is tested"
        )


def check(row):
    """What the issue of these kernels is: halves on tensor cores, in registers; and everything in shared memory."""
    assert row.shared <= LIMITS[row.target].shared_block and row.occupancy > 0, row
    if row.dtype != "float32":
        assert row.spilled == 0, row
        assert row.kernel != "convolution_kernel" or row.instruction.startswith(TENSOR_CORES), row


def test_the_table_was_made_of_these_kernels_and_tuning_tables(table):
    assert not compiled.is_stale(table), (
        f"compiled.csv was made of other kernels or tuning tables; make it anew with `{COMMAND}`"
    )


def test_the_table_has_every_kernel_of_every_layer_for_every_target_in_order(table, matrix):
    nothing = Resources(0, 0, 1, 0, 0, 0, "")
    expected = [
        key(aot.row(job, launch, target, replace(nothing, warps=1)))
        for job in matrix
        for launch in launches_of(job.call, job.network, job.device)
        for target in job.targets
    ]
    assert [key(row) for row in table] == expected, f"make compiled.csv anew with `{COMMAND}`"
    assert {row.target for row in table} == set(LIMITS) == {80, 86, 89, 90, 100, 120}
    assert {row.dtype for row in table} == {"float16", "bfloat16", "float32"}


def test_in_the_table_halves_never_spill_use_tensor_cores_and_all_fits(table):
    for row in table:
        check(row)


@pytest.mark.parametrize(("operator", "dtype", "inputs", "outputs", "height", "target"), SAMPLE)
def test_a_sample_compiles_to_what_the_table_says(table, matrix, operator, dtype, inputs, outputs, height, target):
    job = job_of(matrix, operator, dtype, inputs, outputs, height)
    made = aot.rows(replace(job, targets=(target,)))
    assert made
    for row in made:
        check(row)
    same_compiler(table)
    said = {key(row): row for row in table}
    for row in made:
        assert astuple(row) == astuple(said[key(row)]), f"make compiled.csv anew with `{COMMAND}`"


def test_what_registers_have_no_place_for_is_found(matrix):
    launch = launches_of((job := job_of(matrix, "modulated_conv2d", "float16", 512, 512, 64)).call, job.network)[0]
    assert resources(launch, 89).spilled == 0
    cramped = resources(launch, 89, {"maxnreg": 40})
    assert cramped.registers <= 40 and cramped.spilled > 0


@pytest.mark.parametrize(
    ("target", "warps", "registers", "shared", "resident"),
    [
        (80, 8, 128, 49152, 16),  # 16 warps have registers: 2 blocks; 3 would have shared memory
        (80, 4, 32, 0, 64),  # the most there are
        (89, 4, 32, 0, 48),
        (86, 1, 32, 0, 16),  # blocks
        (89, 1, 32, 0, 24),
        (90, 4, 168, 0, 12),  # 5376 registers each: 12 warps
        (90, 4, 168, 113 * 1024, 8),  # 114 KiB with what is reserved: 2 blocks
        (90, 4, 168, 114 * 1024, 4),
        (120, 4, 32, 99 * 1024, 4),
        (120, 4, 32, 99 * 1024 + 1, 0),  # more than a block may have
        (80, 4, 255, 0, 8),  # 8192 registers each
        (80, 3, 64, 0, 30),  # 2048 registers each: 32 warps, 10 blocks
    ],
)
def test_occupancy_counts_warps_that_are_resident(target, warps, registers, shared, resident):
    used = Resources(warps, 1, registers, 0, shared, 0, "")
    assert occupancy(used, target) == resident / LIMITS[target].warps


def test_occupancy_is_bound_by_tensor_memory():
    used = Resources(4, 1, 32, 0, 0, 256, "")
    assert occupancy(used, 100) == 2 * 4 / 64


def test_the_instruction_is_the_tensor_cores_where_there_is_one():
    assert instruction("FFMA R1 ; FFMA R2 ; HMMA.16816.F32 R4, R8") == "HMMA.16816.F32"
    assert instruction("UTCHMMA gdesc ; UTCHMMA gdesc ; FADD R1") == "UTCHMMA"
    assert instruction("HGMMA.64x128x16.F32 R24") == "HGMMA.64x128x16.F32"
    assert instruction("FADD R1 ; FFMA R2 ; FFMA R3") == "FFMA"
    assert instruction("EXIT") == ""


def test_the_hash_follows_every_kernel_table_and_triton_but_no_line_ends(tmp_path):
    files = dict.fromkeys(compiled.SOURCES, b"a\nb\n") | {"tuning/a.float16.default.json": b"{}\n"}
    (tmp_path / "tuning").mkdir()
    for name, content in files.items():
        (tmp_path / name).write_bytes(content)
    first = compiled.source_hash("3.9.0", tmp_path)
    assert first != compiled.source_hash("3.9.1", tmp_path)
    for name, content in files.items():
        (tmp_path / name).write_bytes(content.replace(b"\n", b"\r\n"))
        assert compiled.source_hash("3.9.0", tmp_path) == first
        (tmp_path / name).write_bytes(content + b"#")
        assert compiled.source_hash("3.9.0", tmp_path) != first
        (tmp_path / name).write_bytes(content)
    (tmp_path / "tuning" / "b.float16.NVIDIA_L4.json").write_bytes(b"{}\n")
    assert compiled.source_hash("3.9.0", tmp_path) != first


def test_a_table_is_read_as_it_was_written_and_another_is_refused(tmp_path, table):
    file = tmp_path / "compiled.csv"
    file.write_text(compiled.as_csv(table))
    assert compiled.read(file) == table
    file.write_text("")
    with pytest.raises(ValueError, match="found columns , expected kernel, operator"):
        compiled.read(file)
    file.write_text("kernel,registers\nx,1\n")
    with pytest.raises(ValueError, match="found columns kernel, registers, expected kernel, operator"):
        compiled.read(file)


def test_a_devices_own_tables_are_compiled_where_they_differ_and_for_its_target(tmp_path, monkeypatch):
    folder = tmp_path / "tuning"
    shutil.copytree(tiles.TABLES, folder)
    for module in (tiles, aot):
        monkeypatch.setattr(module, "TABLES", folder)
    tile = {"rows": 4, "columns": 8, "inputs": 32, "outputs": 32, "warps": 2, "stages": 2}
    entries = [{"inputs": [256, 256], "outputs": [256, 256], "height": [64, 64], "tile": tile}]
    (folder / "modulated_conv2d.float16.NVIDIA_L4.json").write_text(json.dumps({"entries": entries}))
    upsampling = [{"inputs": [256, 256], "outputs": [128, 128], "height": [64, 64], "form": "polyphase", "tile": tile}]
    (folder / "modulated_conv2d_up2.float32.NVIDIA_L4.json").write_text(json.dumps({"entries": upsampling}))
    tiles.table.cache_clear()
    try:
        tuned = [job for job in aot.jobs() if job.device != tiles.DEFAULT]
        assert [(job.call.operator, job.call.layer, job.targets) for job in tuned] == [
            ("modulated_conv2d", (256, 256, 64, 64), (89,)),
            ("modulated_conv2d", (256, 256, 64, 64), (89,)),  # in bfloat16
            ("modulated_conv2d_up2", (256, 128, 64, 64), (89,)),  # by default two steps
        ]
        launch = launches_of(tuned[0].call, tuned[0].network, "NVIDIA_L4")[0]
        assert launch.options == {"num_warps": 2, "num_stages": 2} and launch.constants["BLOCK_OUTPUTS"] == 32
    finally:
        tiles.table.cache_clear()


@pytest.mark.soak
@pytest.mark.timeout(7200)
def test_the_whole_matrix_compiles_to_what_the_table_says(table, matrix):
    made = list(aot.compile_all(matrix, processes=2))
    for row in made:
        check(row)
    same_compiler(table)
    assert made == table, f"make compiled.csv anew with `{COMMAND}`"
