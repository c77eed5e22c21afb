"""Perceptual distances: LPIPS read from files of weights, and the discriminator's features."""

import pytest
import torch
from safetensors.torch import save_file

from styleinv.runtime.errors import CheckpointError
from styleinv.training.model import build_image_discriminator
from styleinv.training.perceptual import discriminator_distance, load_lpips

# For each slice: index of the convolution -> shape of its weight.
ALEX_SHAPES = {
    1: {0: (64, 3, 11, 11)},
    2: {3: (192, 64, 5, 5)},
    3: {6: (384, 192, 3, 3)},
    4: {8: (256, 384, 3, 3)},
    5: {10: (256, 256, 3, 3)},
}
VGG_SHAPES = {
    1: {0: (64, 3, 3, 3), 2: (64, 64, 3, 3)},
    2: {5: (128, 64, 3, 3), 7: (128, 128, 3, 3)},
    3: {10: (256, 128, 3, 3), 12: (256, 256, 3, 3), 14: (256, 256, 3, 3)},
    4: {17: (512, 256, 3, 3), 19: (512, 512, 3, 3), 21: (512, 512, 3, 3)},
    5: {24: (512, 512, 3, 3), 26: (512, 512, 3, 3), 28: (512, 512, 3, 3)},
}


def lpips_weights(shapes):
    torch.manual_seed(0)
    weights = {}
    for part, layers in shapes.items():
        for index, shape in layers.items():
            weights[f"net.slice{part}.{index}.weight"] = torch.randn(shape) / (shape[1] * shape[2] * shape[3]) ** 0.5
            weights[f"net.slice{part}.{index}.bias"] = torch.zeros(shape[0])
        weights[f"lin{part - 1}.model.1.weight"] = torch.rand(1, shape[0], 1, 1)
    return weights


@pytest.mark.parametrize(("shapes", "sizes"), [(ALEX_SHAPES, [15, 7, 3, 3, 3]), (VGG_SHAPES, [64, 32, 16, 8, 4])])
@pytest.mark.parametrize("suffix", [".safetensors", ".pt"])
def test_lpips_of_either_network(tmp_path, shapes, sizes, suffix):
    path = tmp_path / f"lpips{suffix}"
    save = save_file if suffix == ".safetensors" else torch.save
    save(lpips_weights(shapes), path)
    lpips = load_lpips(path)
    image = torch.rand(1, 3, 64, 64) * 2 - 1
    other = image.clone().requires_grad_(True)
    assert [maps.shape[-1] for maps in lpips.features(image)] == sizes
    assert lpips(image, image).item() == pytest.approx(0, abs=1e-6)
    distance = lpips((other * 0.5).tanh(), image)
    distance.backward()
    assert distance.item() > 0
    assert other.grad.abs().sum() > 0


def test_files_that_are_no_lpips(tmp_path):
    with pytest.raises(CheckpointError, match="no such file"):
        load_lpips(tmp_path / "nowhere.pt")
    (tmp_path / "noise.pt").write_bytes(b"noise")
    with pytest.raises(CheckpointError, match=r"noise\.pt: not a readable"):
        load_lpips(tmp_path / "noise.pt")
    weights = lpips_weights(ALEX_SHAPES)
    del weights["lin3.model.1.weight"]
    torch.save(weights, tmp_path / "part.pt")
    with pytest.raises(CheckpointError, match=r"part\.pt: tensor 'lin3\.model\.1\.weight' missing"):
        load_lpips(tmp_path / "part.pt")


def test_discriminator_distance_is_zero_for_equal_pictures_only(small_config):
    torch.manual_seed(0)
    distance = discriminator_distance(build_image_discriminator(small_config))
    image = torch.rand(2, 3, 16, 16)
    changed = torch.rand(2, 3, 16, 16, requires_grad=True)
    assert distance(image, image).item() == pytest.approx(0, abs=1e-6)
    distance(changed, image).backward()
    assert changed.grad.abs().sum() > 0
