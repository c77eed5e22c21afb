"""The authors' golden values, from a file in their layout through the import, in PyTorch and in exported graphs."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from official_files import fill_layout, golden_value

from styleinv.export.official import official_tensors
from styleinv.export.verify_command import main
from styleinv.runtime.errors import DataError
from styleinv.training.checkpoint import load_checkpoint, save_checkpoint
from styleinv.training.checkpoint_file import read_arrays, read_header

SKY64 = Path(__file__).parents[1] / "golden" / "sky64"
LARGEST_MEMORY = 2.2  # times the file's size, above the process's own
RUNNER = """
import sys
from pathlib import Path
from styleinv.export.import_command import main

def memory(field):
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024 * int(next(line for line in lines if line.startswith(field)).split()[1])

baseline = memory("VmRSS")
main(sys.argv[1:])
print(memory("VmHWM") - baseline)
"""


@pytest.fixture(scope="module")
def imported(tmp_path_factory):
    """The golden model's checkpoint, the size of the file it came from, and the memory that the import took."""
    folder = tmp_path_factory.mktemp("golden")
    file = fill_layout(SKY64, folder / "sky64.pkl")
    out = folder / "sky64.safetensors"
    run = subprocess.run(
        [sys.executable, "-c", RUNNER, str(file), "--out", str(out)], capture_output=True, text=True, check=True
    )
    return out, file.stat().st_size, int(run.stdout)


def test_the_import_takes_little_memory(imported):
    _, size, memory = imported
    assert size > 100_000_000
    assert memory <= LARGEST_MEMORY * size


def test_every_tensor_comes_back_bit_for_bit(imported):
    checkpoint, _, _ = imported
    header = read_header(checkpoint)
    tensors = official_tensors(header.kind, header.config, read_arrays(checkpoint))
    layout = json.loads((SKY64 / "state_dict.json").read_text())
    assert set(tensors) == {(part, name) for part, entries in layout.items() for name in entries}
    with np.load(SKY64 / "constants.npz") as constants:
        for (part, name), array in tensors.items():
            expected = np.asarray(golden_value(part, name, layout[part][name], constants), array.dtype)
            np.testing.assert_array_equal(array, expected, strict=True, err_msg=f"{part}.{name}")


def test_the_authors_values_are_reproduced(imported, capsys):
    assert main([str(imported[0]), "--golden", str(SKY64)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[-1] for line in lines] == ["pass"] * 12
    for quantity in ("w0", "x0", "motion_v", "style", "w_t", "frames"):
        assert sum(f" {quantity} " in line for line in lines) == 2  # in PyTorch and in ONNX Runtime


@pytest.fixture
def picture_golden(small_config, small_model, tmp_path):
    """A small generator's checkpoint and a golden folder of its values, to be spoiled."""
    generator, folder = small_model.generator, tmp_path / "golden"
    checkpoint = tmp_path / "image.safetensors"
    save_checkpoint(checkpoint, generator, small_config)
    z = torch.randn(1, small_config.model.generator.z_dim, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        w0 = generator.mapping(z, 0.7)
        x0 = generator.synthesis(w0, "none")
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps({"truncation_psi": 0.7, "noise_mode": "none"}))
    np.savez(folder / "expected.npz", z=z.numpy(), w0=w0.numpy(), x0=x0.numpy())
    return checkpoint, folder, {"z": z.numpy(), "w0": w0.numpy(), "x0": x0.numpy()}


def test_a_value_out_of_tolerance_fails(picture_golden, capsys):
    checkpoint, folder, arrays = picture_golden
    assert main([str(checkpoint), "--golden", str(folder)]) == 0
    assert "FAIL" not in capsys.readouterr().out
    arrays["x0"][0, 0, 0, 0] += 2e-4 * np.abs(arrays["x0"]).max()
    np.savez(folder / "expected.npz", **arrays)
    assert main([str(checkpoint), "--golden", str(folder)]) == 1
    lines = capsys.readouterr().out.splitlines()
    verdicts = [[line.split()[-1] for line in lines if f" {name} " in line] for name in ("w0", "x0")]
    assert verdicts == [["pass", "pass"], ["FAIL", "FAIL"]]


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda folder: (folder / "config.json").unlink(), ["config.json"]),
        (lambda folder: (folder / "config.json").write_text("{"), ["golden folder"]),
        (lambda folder: (folder / "config.json").write_text('{"noise_mode": "random"}'), ["noise_mode", "'random'"]),
        (lambda folder: (folder / "config.json").write_text('{"truncation_psi": "x"}'), ["truncation_psi", "'x'"]),
        (lambda folder: (folder / "expected.npz").write_bytes(b"PK"), ["golden folder"]),
        (lambda folder: np.savez(folder / "expected.npz", w0=np.zeros(3)), ["found w0", "expected z"]),
        (lambda folder: np.savez(folder / "expected.npz", z=np.zeros((1, 3)), w0=np.zeros((1, 12))), ["z", "[1, 3]"]),
        (lambda folder: np.savez(folder / "expected.npz", z=np.zeros((1, 8)), w0=np.zeros((1, 3))), ["w0", "[1, 3]"]),
    ],
)
def test_a_golden_folder_that_does_not_fit_is_named(picture_golden, change, words):
    checkpoint, folder, _ = picture_golden
    change(folder)
    with pytest.raises(DataError) as caught:
        main([str(checkpoint), "--golden", str(folder)])
    assert all(word in str(caught.value) for word in [str(folder), *words]), caught.value


def test_an_inversion_model_has_no_golden_values(small_config, picture_golden, tmp_path):
    from styleinv.training.model import build_inversion

    save_checkpoint(tmp_path / "psp.safetensors", build_inversion(small_config.model), small_config)
    with pytest.raises(DataError, match="found inversion, expected styleinv, image or transfer"):
        main([str(tmp_path / "psp.safetensors"), "--golden", str(picture_golden[1])])
    assert load_checkpoint(picture_golden[0]).kind == "image"
