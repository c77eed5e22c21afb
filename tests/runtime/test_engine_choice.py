"""Which engine of a bundle fits a machine, and what is said where none does."""

import hashlib

import pytest
from compiled_bundle import add_engine

from styleinv.runtime import Bundle
from styleinv.runtime.errors import EngineError
from styleinv.runtime.sessions.engine_choice import FINDINGS, Here, check_batch, engine_for, findings, rebuild_command

HERE = Here("1.7.1", "8.9")


@pytest.fixture
def styled_copy(make_bundle, tmp_path):
    return make_bundle(tmp_path / "sky.bundle", transfers=("ink", "oil"), precisions=("fp16",))


def engine(bundle, name="synthesis", transfer=None, precision="fp16", session="rtx", here=HERE):
    opened = Bundle.open(bundle.path)
    return engine_for(opened, session, opened.graph(name, transfer, precision), here)


def test_the_one_of_this_graph_that_fits(styled_copy):
    files = [
        add_engine(styled_copy, "synthesis", precision="fp16", **fields)
        for fields in (
            {"targets": ["8.6"]},
            {"targets": ["8.9"], "version": "1.6.0"},
            {"targets": ["8.6", "8.9"]},
            {"targets": ["8.9"], "transfer": "ink"},
            {"targets": ["8.9"], "engine": "tensorrt"},
        )
    ]
    assert engine(styled_copy).engine.file == files[2]
    assert engine(styled_copy, transfer="ink").engine.file == files[3]
    assert engine(styled_copy, session="tensorrt").engine.file == files[4]
    assert engine(styled_copy, here=Here("1.7.1", "8.6")).engine.file == files[2]
    newer = add_engine(styled_copy, "synthesis", precision="fp16", targets=["8.9"])
    assert engine(styled_copy).engine.file == newer


def test_a_refittable_one_becomes_a_transfers(styled_copy):
    file = add_engine(styled_copy, "synthesis", precision="fp16", refittable=True)
    found = engine(styled_copy, transfer="ink")
    assert found.engine.file == file and found.graph.file.parent.name == "ink" and found.engine.graph != found.graph
    with pytest.raises(EngineError):
        engine(styled_copy, name="latent")


def test_a_styles_own_engine_becomes_no_other_styles(styled_copy):
    """It is there because it is of another shape."""
    own = add_engine(styled_copy, "synthesis", precision="fp16", refittable=True)
    oil = add_engine(styled_copy, "synthesis", precision="fp16", refittable=True, transfer="oil")
    assert engine(styled_copy, transfer="oil").engine.file == oil
    assert engine(styled_copy, transfer="ink").engine.file == own


def test_none_fits(styled_copy):
    with pytest.raises(EngineError, match=r"engines of fp16/synthesis.onnx for rtx: found none, expected one in fp16 "
                       r"by version 1.7.1 for compute capability 8.9: build it with `styleinv export .*sky.bundle "
                       r"--engine rtx --precision fp16 --compute-capability 8.9`"):  # fmt: skip
        engine(styled_copy)
    add_engine(styled_copy, "synthesis", precision="fp16", targets=["8.6", "12.0"])
    add_engine(styled_copy, "synthesis", precision="fp16", targets=["8.9"], version="1.6.0")
    with pytest.raises(EngineError, match=r"found synthesis in fp16, built for compute capability 8.6, 12.0, where "
                       r"the GPU has 8.9; synthesis in fp16, built by version 1.6.0, where 1.7.1 is"):  # fmt: skip
        engine(styled_copy)
    with pytest.raises(
        EngineError, match=r"engines of synthesis.onnx for rtx: found synthesis in fp16.*--precision fp32"
    ):
        engine(styled_copy, precision="fp32")
    with pytest.raises(EngineError, match=r"`styleinv export .* --engine tensorrt --precision fp16`"):
        engine(styled_copy, session="tensorrt")
    assert engine(styled_copy, here=None).engine.version == "1.6.0"  # before the machine is known


def test_batches(styled_copy):
    add_engine(styled_copy, "synthesis", precision="fp16", targets=["8.6", "8.9"], batch=[2, 3, 4])
    spec = engine(styled_copy).engine
    for batch in (2, 3, 4):
        check_batch(spec, batch)
    with pytest.raises(EngineError, match=r"batch: found 8, expected 2 to 4; .*8.6 8.9 --batch 2 3 8`"):
        check_batch(spec, 8)
    with pytest.raises(EngineError, match=r"batch: found 1, expected 2 to 4; .* --batch 1 3 4`"):
        check_batch(spec, 1)


def test_commands():
    assert rebuild_command("tensorrt", "fp8") == "styleinv export BUNDLE --engine tensorrt --precision fp8"
    assert rebuild_command("rtx", "fp16", "12.0").endswith("--engine rtx --precision fp16 --compute-capability 12.0")


def test_findings_in_words():
    assert findings(1 | 4) == f"{FINDINGS[1]}; {FINDINGS[4]}" and findings(1024) == "its finding 1024"
    library = pytest.importorskip("tensorrt_rtx")
    assert {int(bit) for bit in library.EngineInvalidityDiagnostics.__members__.values()} == set(FINDINGS)


def test_the_file_that_was_added_is_the_manifests(styled_copy):
    file = add_engine(styled_copy, "synthesis", precision="fp16")
    assert engine(styled_copy).engine.sha256 == hashlib.sha256(file.read_bytes()).hexdigest()
