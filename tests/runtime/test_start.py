"""Where a clip starts: at the z of a seed, at a given z, at a latent, or at a picture."""

import numpy as np
import pytest

from styleinv.runtime import Bundle, BundleError, DataError, Rollout, Sessions
from styleinv.runtime.inversion import invert
from styleinv.runtime.noise import Z_DOMAIN, standard_normal
from styleinv.runtime.pictures import as_image, fit_picture
from styleinv.runtime.sinks import encode_png

TIMES = [0, 2.5, 100]


@pytest.fixture(scope="module")
def sessions(styled):
    with Sessions(Bundle.open(styled.path), threads=1) as sessions:
        yield sessions


def picture(height, width):
    """Unlike in every row, column and channel."""
    y, x, channel = np.mgrid[0:height, 0:width, 0:3]
    return ((40 * channel + 3 * y + 2 * x * channel + 20) % 256).astype(np.uint8)


def shown(rollout):
    return [rollout.first_latent.tobytes(), *(rollout[t].tobytes() for t in TIMES)]


@pytest.mark.parametrize("kind", [list, tuple, np.float32, np.float64])
def test_a_given_z_stands_in_for_the_seeds(sessions, kind):
    z = np.float32(standard_normal(3, Z_DOMAIN, 0, 8))
    given = z.astype(kind) if kind in (np.float32, np.float64) else kind(z.tolist())
    assert shown(Rollout(sessions, 8, z=given, motion_seed=3)) == shown(Rollout(sessions, 3))
    assert shown(Rollout(sessions, 8, z=given)) == shown(Rollout(sessions, 3, motion_seed=8))


def test_what_is_given_is_copied(sessions):
    z, w0, pixels = np.linspace(-1, 1, 8).astype(np.float32), np.linspace(-1, 1, 12).astype(np.float32), picture(7, 9)
    for name, array in {"z": z, "w0": w0, "image": pixels}.items():
        expected = shown(Rollout(sessions, **{name: array.copy()}))
        rollout = Rollout(sessions, **{name: array})
        array[...] = 1  # before anything was computed
        assert shown(rollout) == expected
        assert array.flags.writeable


@pytest.mark.parametrize("size", [(16, 16), (1, 1), (1, 9), (5, 3), (17, 31), (64, 48), (33, 200)])
def test_a_picture_of_any_size(styled, sessions, size):
    """The centred square, brought to the bundle's resolution; the tiny encoder sees its mean colour."""
    pixels = picture(*size)
    rollout = Rollout(sessions, 3, image=pixels)
    square = fit_picture(pixels, 16)
    np.testing.assert_array_equal(rollout.first_latent, invert(sessions, as_image(square)))
    colour = square.reshape(-1, 3).mean(axis=0) / 127.5 - 1
    np.testing.assert_allclose(rollout.first_latent, colour @ styled.weights["C"], atol=1e-5)
    assert shown(rollout) == shown(Rollout(sessions, 3, w0=rollout.first_latent))


def test_a_pictures_centred_square_is_taken(sessions):
    pixels = picture(20, 32)
    framed = np.full((20, 52, 3), 255, np.uint8)
    framed[:, 10:42] = pixels
    assert shown(Rollout(sessions, image=framed)) == shown(Rollout(sessions, image=pixels))
    assert shown(Rollout(sessions, image=pixels[:, 6:26])) == shown(Rollout(sessions, image=pixels))


@pytest.mark.parametrize("kind", [str, lambda path: path])
def test_a_picture_in_a_file(sessions, tmp_path, kind):
    pytest.importorskip("av")
    pixels = picture(21, 34)
    file = tmp_path / "a picture.png"
    file.write_bytes(encode_png(pixels))
    assert shown(Rollout(sessions, 3, image=kind(file))) == shown(Rollout(sessions, 3, image=pixels))


def test_pictures_that_lie_otherwise_in_memory(sessions):
    pixels = picture(18, 25)
    expected = shown(Rollout(sessions, image=pixels))
    for same in (np.asfortranarray(pixels), picture(18, 50)[:, :25], pixels[::-1].copy()[::-1]):
        assert shown(Rollout(sessions, image=same)) == expected
    pixels.flags.writeable = False
    assert shown(Rollout(sessions, image=pixels)) == expected


def test_a_picture_moves_as_the_seed_says(sessions):
    first, second = (Rollout(sessions, image=picture(16, 16), motion_seed=seed) for seed in (3, 4))
    np.testing.assert_array_equal(first.first_latent, second.first_latent)
    assert shown(first)[:2] == shown(second)[:2] and shown(first)[3] != shown(second)[3]
    assert shown(first) == shown(Rollout(sessions, 3, image=picture(16, 16)))


def test_a_picture_opens_a_bundle(styled):
    with Rollout.open(styled.path, 3, image=picture(9, 9), transfer="ink", threads=1) as rollout:
        plain = Rollout(rollout.sessions, 3, w0=rollout.first_latent)
        np.testing.assert_array_equal(rollout.latents(TIMES), plain.latents(TIMES))
        assert not np.array_equal(rollout[20], plain[20])


@pytest.mark.parametrize(
    ("image", "message"),
    [
        (np.zeros((16, 16)), r"image: found float64 \[16, 16\], expected uint8 \[H, W, 3\]"),
        (np.zeros((16, 16, 3), np.float32), r"image: found float32 \[16, 16, 3\]"),
        (np.zeros((16, 16), np.uint8), r"image: found uint8 \[16, 16\]"),
        (np.zeros((16, 16, 1), np.uint8), r"image: found uint8 \[16, 16, 1\]"),
        (np.zeros((16, 16, 4), np.uint8), r"image: found uint8 \[16, 16, 4\]"),
        (np.zeros((3, 16, 16), np.uint8), r"image: found uint8 \[3, 16, 16\]"),
        (np.zeros((1, 16, 16, 3), np.uint8), r"image: found uint8 \[1, 16, 16, 3\]"),
        (np.zeros((0, 16, 3), np.uint8), r"image: found uint8 \[0, 16, 3\]"),
        (np.zeros((16, 0, 3), np.uint8), r"image: found uint8 \[16, 0, 3\]"),
    ],
)
def test_arrays_that_are_no_pictures(sessions, image, message):
    with pytest.raises(ValueError, match=message):
        Rollout(sessions, image=image)


def test_files_that_are_no_pictures(sessions, tmp_path):
    pytest.importorskip("av")
    (tmp_path / "text.png").write_text("not a picture, " * 99)
    for name in ("text.png", "nowhere.png", "."):
        with pytest.raises(DataError, match=r"expected a .*picture: PNG, JPEG, WebP or BMP") as caught:
            Rollout(sessions, image=tmp_path / name)
        assert str(tmp_path / name) in str(caught.value)


GIVEN = {"z": np.zeros(8), "w0": np.zeros(12), "image": np.zeros((16, 16, 3), np.uint8)}


@pytest.mark.parametrize(
    ("given", "other", "value"),
    [
        ("w0", "z", GIVEN["z"]),
        ("image", "z", GIVEN["z"]),
        ("w0", "image", GIVEN["image"]),
        ("w0", "image", "nowhere.png"),
        ("image", "truncation", 0.7),
        ("w0", "truncation", 0),
        ("image", "label", 1),
        ("w0", "label", 0),
    ],
)
def test_two_starts(sessions, given, other, value):
    with pytest.raises(ValueError, match=rf"{other}: found .*, expected none: {given} stands in for the mapping"):
        Rollout(sessions, **{given: GIVEN[given], other: value})


def test_a_seed_a_label_and_a_truncation_go_with_z(sessions, make_bundle, tmp_path):
    z = np.linspace(-1, 1, 8)
    plain, halved = Rollout(sessions, 5, z=z), Rollout(sessions, 5, z=z, truncation=np.float32(0.5))
    np.testing.assert_allclose(halved.first_latent, plain.first_latent / 2, atol=1e-6)
    bundle = make_bundle(tmp_path / "classes.bundle", "image", label_dim=3)
    with Rollout.open(bundle.path, z=z, label=np.int64(2)) as second, Rollout.open(bundle.path, z=z, label=0) as zeroth:
        np.testing.assert_allclose(second.first_latent, zeroth.first_latent + 2, atol=1e-6)


def test_a_bundle_that_inverts_nothing(tiny):
    with pytest.raises(BundleError, match=r"expected inversion, too.*export again with `styleinv export"):
        Rollout.open(tiny.path, image=GIVEN["image"])


@pytest.mark.parametrize(
    "arguments", [{"w0": np.zeros(7)}, {"image": np.zeros(3)}, {"transfer": "anime"}, {"seed": -1}]
)
def test_a_start_that_fails_leaves_nothing_open(styled, monkeypatch, arguments):
    closed = []
    monkeypatch.setattr(Sessions, "close", lambda sessions, close=Sessions.close: closed.append(close(sessions)))
    with pytest.raises((ValueError, BundleError)):
        Rollout.open(styled.path, **arguments)
    assert len(closed) == 1
