"""Clips: what is found and decoded, what is refused, and the cache.

Shapes: T frames of a clip, H, W pixels.
"""

from __future__ import annotations

import itertools
import os
import signal
import subprocess
import sys
import time
import warnings
import zipfile
from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import av
import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from styleinv.runtime.errors import DataError
from styleinv.training import clip_cache, clip_files, clip_frames
from styleinv.training.data import ClipSet, frame_batch, load_clips

REPOSITORY = Path(__file__).parents[2]
CODECS = {
    ".mp4": ("libx264", "yuv420p"),
    ".mov": ("libx264", "yuv420p"),
    ".avi": ("mpeg4", "yuv420p"),
    ".mkv": ("libx264", "yuv420p"),
    ".webm": ("libvpx", "yuv420p"),
    ".gif": ("gif", "rgb8"),
}


def moving_square(frames: int, height: int = 32, width: int = 48) -> NDArray[np.uint8]:
    """[T,H,W,3]: a white square of 8 pixels on black that moves right by 2 pixels a frame from the left of the crop."""
    video = np.zeros((frames, height, width, 3), np.uint8)
    for t in range(frames):
        left = (width - min(height, width)) // 2 + 2 * t
        video[t, 12:20, left : left + 8] = 255
    return video


def grey_levels(frames: int) -> NDArray[np.uint8]:
    """[T,32,32,3]: frame t is of the grey 10 t, so that a frame tells its number."""
    return np.broadcast_to(10 * np.arange(frames, dtype=np.uint8)[:, None, None, None], (frames, 32, 32, 3))


def write_video(path: Path, frames: NDArray[np.uint8], tenths: Sequence[int] | None = None) -> Path:
    """Encode frames [T,H,W,3] at 10 frames per second, or to be shown at times in tenths of a second."""
    path.parent.mkdir(parents=True, exist_ok=True)
    codec, pixel_format = CODECS[path.suffix]
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=10, options={"crf": "4", "b": "4M"} if codec != "gif" else {})
        stream.height, stream.width = frames.shape[1:3]
        stream.pix_fmt = pixel_format
        for frame, tenth in zip(frames, tenths or range(len(frames)), strict=True):
            picture = av.VideoFrame.from_ndarray(np.ascontiguousarray(frame), format="rgb24")
            picture.pts, picture.time_base = tenth, Fraction(1, 10)
            container.mux(stream.encode(picture))
        container.mux(stream.encode())
    return path


def write_pictures(folder: Path, frames: NDArray[np.uint8], pattern: str = "frame{}.png") -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for t, frame in enumerate(frames):
        Image.fromarray(frame).save(folder / pattern.format(t))
    return folder


def zip_folder(folder: Path) -> Path:
    target = folder.with_name(f"{folder.name}.zip")
    with zipfile.ZipFile(target, "w", zipfile.ZIP_DEFLATED) as archive:
        for file in folder.rglob("*"):
            archive.write(file, file.relative_to(folder))
    return target


@pytest.fixture
def load(tmp_path: Path) -> Any:
    """`load_clips` with a cache of this test and no progress bar."""

    def load(path: Path, resolution: int = 32, **options: Any) -> ClipSet:
        return load_clips(path, resolution, **{"cache": tmp_path / "cache", "progress": False, **options})

    return load


# What is found and decoded


@pytest.mark.parametrize("suffix", CODECS)
def test_videos_are_cropped_resized_and_complete(suffix: str, tmp_path: Path, load: Any) -> None:
    video = moving_square(9)
    clips = load(write_video(tmp_path / f"square{suffix}", video), resolution=16)
    assert (clips.names, clips.lengths.tolist(), clips.total_frames) == ((f"square{suffix}",), [9], 9)
    assert clips.clip(0).shape == (9, 16, 16, 3) and clips.clip(0).dtype == np.uint8
    expected = video[:, :, 8:40].reshape(9, 16, 2, 16, 2, 3).mean((2, 4))
    assert np.abs(clips.clip(0) - expected).mean() < 6


@pytest.mark.parametrize("pattern", ["frame{}.png", "frame{}.PNG", "{}.bmp", "f{}x.webp", "frame-{}.jpg", "{}.jpeg"])
def test_pictures_come_in_natural_order(pattern: str, tmp_path: Path, load: Any) -> None:
    folder = write_pictures(tmp_path / "clip", grey_levels(12), pattern)
    clips = load(folder)
    assert clips.names == ("clip",)
    assert np.allclose(clips.clip(0)[:, 5, 5, 0], 10 * np.arange(12), atol=3)


def test_whole_ratios_average_by_area_and_others_keep_a_flat_picture(tmp_path: Path, load: Any) -> None:
    picture = np.random.default_rng(0).integers(0, 256, (1, 24, 40, 3), dtype=np.uint8)
    folder = write_pictures(tmp_path / "clip", picture)
    exact = picture[0, :, 8:32].reshape(6, 4, 6, 4, 3).mean((1, 3))
    assert np.abs(load(folder, resolution=6).clip(0)[0] - exact).max() <= 0.5
    flat = write_pictures(tmp_path / "flat", np.full((1, 21, 40, 3), 77, np.uint8))
    for resolution in (8, 64):  # smaller and larger than the picture
        assert (load(flat, resolution=resolution).frames == 77).all()


@pytest.mark.parametrize(
    ("picture", "expected"),
    [
        (Image.new("L", (8, 8), 90), (90, 90, 90)),
        (Image.new("RGBA", (8, 8), (200, 100, 50, 0)), (0, 0, 0)),
        (Image.new("RGBA", (8, 8), (200, 100, 50, 128)), (100, 50, 25)),
        (Image.new("LA", (8, 8), (90, 0)), (0, 0, 0)),
        (Image.new("RGB", (8, 8), (200, 100, 50)).convert("P", palette=Image.Palette.ADAPTIVE), (200, 100, 50)),
        (Image.new("1", (8, 8), 1), (255, 255, 255)),
        (Image.fromarray(np.full((8, 8), 90 << 8, np.uint16)), (90, 90, 90)),
    ],
    ids=lambda value: value.mode if isinstance(value, Image.Image) else str(value),
)
def test_pictures_of_any_mode_become_rgb(
    picture: Image.Image, expected: tuple[int, ...], tmp_path: Path, load: Any
) -> None:
    (tmp_path / "clip").mkdir()
    picture.save(tmp_path / "clip" / "0.png")
    assert np.abs(load(tmp_path / "clip", resolution=8).frames[0].astype(int) - expected).max() <= 1


def test_rotation_is_applied(tmp_path: Path, load: Any) -> None:
    video = np.zeros((3, 32, 32, 3), np.uint8)
    video[:, :16, :16] = 255
    path = write_video(tmp_path / "turned.mp4", video)
    contents = path.read_bytes()
    # The track header's matrix, in 16.16 fixed point: from the identity to x' = -y, y' = x, a quarter turn clockwise.
    start = contents.index(b"tkhd") + 44
    turned = np.array([0, 1 << 16, 0, -1 << 16, 0, 0, 0, 0, 1 << 30], ">i4").tobytes()
    path.write_bytes(contents[:start] + turned + contents[start + len(turned) :])
    corners = load(path).frames[0, ::31, ::31, 0]
    assert np.allclose(corners, [[0, 255], [0, 0]], atol=8)

    picture = Image.fromarray(video[0])
    exif = picture.getexif()
    exif[0x0112] = 6  # orientation: to be turned clockwise
    (tmp_path / "clip").mkdir()
    picture.save(tmp_path / "clip" / "0.png", exif=exif)
    assert (load(tmp_path / "clip").frames[0, ::31, ::31, 0] == [[0, 255], [0, 0]]).all()


def test_a_folder_is_searched_through_links_and_past_other_files(tmp_path: Path, load: Any) -> None:
    root = tmp_path / "clips"
    write_video(root / "b" / "clip10.mp4", grey_levels(3))
    write_video(root / "b" / "clip9.MP4".lower(), grey_levels(4))
    write_pictures(tmp_path / "elsewhere", grey_levels(5))
    (root / "a").symlink_to(tmp_path / "elsewhere")
    (root / "b" / "loop").symlink_to(root)
    (root / "b" / "._clip9.mp4").write_bytes(b"what a Mac leaves behind")
    (root / "notes.txt").write_text("not a clip")
    clips = load(root)
    assert clips.names == ("a", "b/clip9.mp4", "b/clip10.mp4")
    assert clips.lengths.tolist() == [5, 4, 3] and clips.offsets.tolist() == [0, 5, 9]
    assert np.allclose(clips.frames[:, 0, 0, 0], [0, 10, 20, 30, 40, 0, 10, 20, 30, 0, 10, 20], atol=3)


def test_a_zip_holds_what_its_folder_holds(tmp_path: Path, load: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "clips"
    write_pictures(folder / "still", grey_levels(11))
    write_video(folder / "moving" / "square.mp4", moving_square(6))
    monkeypatch.setattr(clip_files, "_MEMORY_PER_MEMBER", 1000)  # so that the video takes the temporary file
    packed, unpacked = load(zip_folder(folder)), load(folder)
    assert packed.names == unpacked.names == ("moving/square.mp4", "still")
    assert (packed.frames == unpacked.frames).all()


@pytest.mark.parametrize(
    ("frame_rate", "expected"),
    [
        (10.0, [0, 1, 2, 3, 4, 5, 6]),
        (5.0, [0, 2, 4, 6]),
        (20.0, [0, 0, 1, 1, 2, 2, 3, 3, 4, 4, 5, 5, 6, 6]),
        (4.0, [0, 2, 5]),  # at 0.25 s, frames 2 and 3 are equally near
        (0.5, [0]),
    ],
)
@pytest.mark.parametrize("suffix", [".mp4", ".gif"])
def test_frame_rate_takes_the_nearest_frames(
    suffix: str, frame_rate: float, expected: list[int], tmp_path: Path, load: Any
) -> None:
    levels = 36 * np.arange(7, dtype=np.uint8)  # also apart in the 8 levels that a gif has for each colour
    path = write_video(tmp_path / f"levels{suffix}", grey_levels(7) // 10 * 36)
    clips = load(path, frame_rate=frame_rate)
    nearest = np.abs(clips.frames[:, 5, 5, 0].astype(int)[:, None] - levels).argmin(1)
    assert nearest.tolist() == expected


def test_frame_rate_fills_pauses_but_not_absurd_ones(tmp_path: Path, load: Any) -> None:
    path = write_video(tmp_path / "pauses.mp4", grey_levels(4), tenths=[0, 1, 4, 5])
    resampled = load(path, frame_rate=10.0).frames[:, 5, 5, 0]
    assert np.allclose(resampled, [0, 10, 10, 20, 20, 30, 30], atol=3)  # the last lasts for the mean, 0.15 s
    path = write_video(tmp_path / "damaged.mp4", grey_levels(3), tenths=[0, 1, 1000])
    assert load(path).total_frames == 3
    with pytest.raises(DataError, match=r"damaged\.mp4: found a frame that is shown for 99\.9 s, expected 0 to 60 s"):
        load(path, frame_rate=10.0)


def test_frame_rate_leaves_pictures_alone(tmp_path: Path, load: Any) -> None:
    assert load(write_pictures(tmp_path / "clip", grey_levels(5)), frame_rate=3.0).total_frames == 5


def test_frame_rate_counts_from_the_first_frame(tmp_path: Path, load: Any) -> None:
    path = write_video(tmp_path / "late.mkv", grey_levels(5), tenths=[7, 8, 9, 10, 11])
    assert np.allclose(load(path, frame_rate=5.0).frames[:, 5, 5, 0], [0, 20, 40], atol=3)


def test_frames_without_a_time_follow_their_neighbour() -> None:
    frames: list[Any] = [SimpleNamespace(pts=pts, time_base=Fraction(1, 10)) for pts in (None, 2, None, 5)]
    timed = list(clip_frames._with_times(frames, Fraction(1, 10), "clip"))
    assert [time for time, _ in timed] == [Fraction(tenths, 10) for tenths in (1, 2, 3, 5)]


def test_short_clips_are_skipped_with_one_warning(tmp_path: Path, load: Any) -> None:
    for name, length in (("a", 3), ("b", 6), ("c", 2), ("d", 5)):
        write_pictures(tmp_path / "clips" / name, grey_levels(length))
    with pytest.warns(UserWarning, match=r"skipped 2 of 4 .* 5 frames: a \(3\), c \(2\)") as caught:
        clips = load(tmp_path / "clips", minimum_frames=5)
    assert [warning.filename for warning in caught] == [__file__]
    assert clips.names == ("b", "d") and clips.total_frames == 11
    assert [clips.clip(i)[-1, 0, 0, 0] for i in range(2)] == [50, 40]
    epoch = frame_batch(clips, seed=0, start=0, count=11, mirror=False)
    assert sorted(epoch[:, 0, 0, 0]) == sorted([0, 10, 20, 30, 40, 50, 0, 10, 20, 30, 40])


def test_real_clips(load: Any) -> None:
    folder = Path(os.environ.get("STYLEINV_DATA", REPOSITORY.parent / "shared" / "data")) / "sky"
    if not folder.is_dir():
        pytest.skip(f"no real clips: {folder} is not a folder; set STYLEINV_DATA")
    path = sorted(folder.glob("*.mp4"))[0]
    clips = load(path, resolution=64, minimum_frames=32, frame_rate=25.0)
    assert clips.frames.shape == (32, 64, 64, 3)
    steps = np.abs(np.diff(clips.frames.astype(int), axis=0)).mean()
    assert 0 < steps < 20 and clips.frames.std() > 5  # a picture, and one that moves slowly


# What is refused


def damaged_avi_header(tmp_path: Path) -> Path:
    path = write_video(tmp_path / "cut.avi", moving_square(20))
    path.write_bytes(path.read_bytes()[:2000])
    return path


def truncated_mp4(tmp_path: Path) -> Path:
    path = write_video(tmp_path / "cut.mp4", moving_square(20))
    path.write_bytes(path.read_bytes()[:-500])
    return path


def truncated_mp4_in_folder(tmp_path: Path) -> Path:
    write_video(tmp_path / "clips" / "whole.mp4", moving_square(3))
    truncated_mp4(tmp_path / "clips")
    return tmp_path / "clips"


def truncated_picture(tmp_path: Path) -> Path:
    file = write_pictures(tmp_path / "clip", moving_square(2)) / "frame1.png"
    file.write_bytes(file.read_bytes()[:60])
    return file.parent


def empty_picture(tmp_path: Path) -> Path:
    folder = write_pictures(tmp_path / "clip", moving_square(2))
    (folder / "frame1.png").write_bytes(b"")
    return folder


def dangling_link(tmp_path: Path) -> Path:
    folder = write_pictures(tmp_path / "clip", moving_square(2))
    (folder / "lost.png").symlink_to(tmp_path / "nowhere")
    return folder


def playlist(tmp_path: Path) -> Path:
    """FFmpeg takes this for a list of files to open, whatever it is called."""
    path = tmp_path / "list.mp4"
    path.write_text(f"ffconcat version 1.0\nfile '{write_video(tmp_path / 'secret.mp4', moving_square(3))}'\n")
    return path


def sound_only(tmp_path: Path) -> Path:
    path = tmp_path / "sound.mkv"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("pcm_s16le", rate=8000)
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 800), np.int16), format="s16", layout="mono")
        frame.rate = 8000
        container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return path


def written(name: str, contents: bytes) -> Any:
    def make(tmp_path: Path) -> Path:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(contents)
        return tmp_path / Path(name).parts[0]

    return make


def zipped(*members: tuple[str, bytes]) -> Any:
    def make(tmp_path: Path) -> Path:
        with zipfile.ZipFile(tmp_path / "clips.zip", "w", zipfile.ZIP_DEFLATED) as archive:
            for name, contents in members:
                archive.writestr(name, contents)
        return tmp_path / "clips.zip"

    return make


def damaged_zip_member(tmp_path: Path) -> Path:
    path = zip_folder(write_pictures(tmp_path / "clips", moving_square(2)))
    contents = bytearray(path.read_bytes())
    contents[45:60] = bytes(15)
    path.write_bytes(contents)
    return path


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda tmp_path: tmp_path / "nothing", r"nothing: found nothing there, expected videos \(\.avi"),
        (written("clips/notes.txt", b"text"), r"clips: found no clip \(1 of \.txt\), expected videos"),
        (written("clip.wmv", b"text"), r"clip\.wmv: found a file of type '\.wmv', expected videos"),
        (written("picture.png", b"text"), r"picture\.png: found a file of type '\.png', expected videos"),
        (written("clip.mp4", b""), r"clip\.mp4: found an empty file, expected a video"),
        (written("clip.mp4", b"text"), r"clip\.mp4: found a damaged or unknown file .*, expected a video"),
        (written("clip.gif", b"GIF89a"), r"clip\.gif: found a damaged or unknown file .*, expected a video"),
        (written("clip/0.png", b"text"), r"clip/0\.png: found a damaged or unknown file .*, expected a picture"),
        (written("clips.zip", b"text"), r"clips\.zip: found a file that is no zip .*, expected a zip of clips"),
        (written("clips.zip", b""), r"clips\.zip: found a file that is no zip"),
        (zipped(), r"clips\.zip: found no clip \(no files at all\), expected videos"),
        (zipped(("a.txt", b"")), r"clips\.zip: found no clip \(1 of \.txt\)"),
        (zipped(("a/0.png", b"")), r"clips\.zip/a/0\.png: found an empty file, expected a picture"),
        (zipped(("a/0.mp4", b"text")), r"clips\.zip/a/0\.mp4: found a damaged or unknown file"),
        (zipped(("../0.png", b"")), r"clips\.zip: found a member '\.\./0\.png', expected names that stay inside"),
        (zipped(("/etc/0.png", b"")), r"clips\.zip: found a member '/etc/0\.png'"),
        (zipped(("a\\..\\..\\0.png", b"")), r"clips\.zip: found a member "),
        (zipped(("0.bmp", bytes(3_000_000))), r"clips\.zip: found 3000000 bytes when unpacked, expected at most"),
        (damaged_zip_member, r"clips\.zip/frame\d\.png: found a damaged or unknown file"),
        (damaged_avi_header, r"cut\.avi: found a damaged or unknown file"),
        (truncated_mp4, r"cut\.mp4: found a damaged or unknown file"),
        (truncated_mp4_in_folder, r"clips/cut\.mp4: found a damaged or unknown file"),
        (truncated_picture, r"clip/frame1\.png: found a damaged or unknown file"),
        (empty_picture, r"clip/frame1\.png: found an empty file"),
        (dangling_link, r"clip: cannot be read.*lost\.png"),
        (playlist, r"list\.mp4: found a damaged or unknown file"),
        (sound_only, r"sound\.mkv: found no pictures in it, expected a video"),
    ],
)
def test_bad_input_is_refused_by_name(
    make: Any, message: str, tmp_path: Path, load: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(clip_files, "_ZIP_ALLOWANCE", 1_000_000)
    with pytest.raises(DataError, match=message):
        load(make(tmp_path))
    assert not list((tmp_path / "cache").glob("*"))


def test_no_clip_long_enough(tmp_path: Path, load: Any) -> None:
    folder = write_pictures(tmp_path / "clip", grey_levels(3))
    with pytest.raises(DataError, match=r"clip: found 1 clips, the longest of 3 frames, expected .* of 4 frames"):
        load(folder, minimum_frames=4)


def test_frames_that_the_header_promises_are_missed(tmp_path: Path, load: Any) -> None:
    path = write_video(tmp_path / "cut.avi", np.random.default_rng(0).integers(0, 256, (20, 32, 48, 3), dtype=np.uint8))
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with pytest.warns(UserWarning, match=r"cut\.avi: found \d+ frames, its header promises 20"):
        load(path)


def test_encrypted_zip(tmp_path: Path, load: Any) -> None:
    path = zip_folder(write_pictures(tmp_path / "clips", moving_square(1)))
    contents = bytearray(path.read_bytes())
    contents[contents.index(b"PK\x03\x04") + 6] |= 1  # the flags of the local header, and of the directory
    contents[contents.index(b"PK\x01\x02") + 8] |= 1
    path.write_bytes(contents)
    with pytest.raises(DataError, match=r"frame0\.png: found a damaged or unknown file .*encrypted"):
        load(path)


@pytest.mark.parametrize("options", [{"resolution": 0}, {"frame_rate": 0.0}, {"frame_rate": float("nan")}])
def test_arguments_out_of_range(options: dict[str, float], tmp_path: Path, load: Any) -> None:
    with pytest.raises(ValueError, match="expected positive numbers"):
        load(tmp_path, **options)


# The cache


@pytest.fixture
def decoded(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The names of the clips that were decoded since."""
    names: list[str] = []
    original = clip_cache.square_frames

    def recording(clip: clip_files.SourceClip, *arguments: Any) -> Any:
        names.append(clip.name)
        return original(clip, *arguments)

    monkeypatch.setattr(clip_cache, "square_frames", recording)
    return names


def test_a_second_call_decodes_nothing_and_says_nothing(
    tmp_path: Path, load: Any, decoded: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    folder = write_pictures(tmp_path / "clip", grey_levels(3))
    first = load(folder, progress=True)
    assert decoded == ["clip"] and "3 frames" in capsys.readouterr().err
    folder = folder.rename(tmp_path / "moved")
    second = load(folder, progress=True, minimum_frames=2)
    assert decoded == ["clip"] and capsys.readouterr() == ("", "")
    assert (first.frames == second.frames).all() and not second.frames.flags.writeable


def test_changed_input_is_decoded_again(tmp_path: Path, load: Any, decoded: list[str]) -> None:
    folder = write_pictures(tmp_path / "clip", grey_levels(3))
    load(folder)
    Image.new("RGB", (32, 32), "white").save(folder / "frame2.png")
    assert load(folder).frames[2].min() == 255
    os.utime(folder / "frame2.png", (1, 1))
    load(folder)
    load(folder, resolution=16)
    load(folder, frame_rate=5.0)
    assert len(decoded) == 5


def test_weights_do_not_decode_again(tmp_path: Path, load: Any, decoded: list[str]) -> None:
    for name, length in (("a", 3), ("b", 2), ("c", 4)):
        write_pictures(tmp_path / "clips" / name, grey_levels(length))
    plain = load(tmp_path / "clips")
    assert plain.weights.tolist() == [1, 1, 1] and not plain.is_weighted
    (tmp_path / "clips" / "weights.csv").write_text("a,0\nc,2.5\n")
    beside = load(tmp_path / "clips")
    assert beside.names == ("b", "c") and beside.weights.tolist() == [1, 2.5] and beside.is_weighted
    assert beside.clip(1)[:, 0, 0, 0].tolist() == [0, 10, 20, 30]
    (tmp_path / "other.csv").write_text("b,3\nc,3\na,3\n")
    given = load(tmp_path / "clips", weights=tmp_path / "other.csv")
    assert given.names == ("a", "b", "c") and not given.is_weighted
    assert decoded == ["a", "b", "c"]


def test_a_clip_that_is_left_out_may_be_short(tmp_path: Path, load: Any) -> None:
    for name, length in (("a", 3), ("b", 6)):
        write_pictures(tmp_path / "clips" / name, grey_levels(length))
    weights = tmp_path / "weights.csv"
    weights.write_text("a,0\n")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert load(tmp_path / "clips", minimum_frames=5, weights=weights).names == ("b",)
    weights.write_text("d,1\n")
    with pytest.raises(DataError, match=r"weights\.csv: line 1: found the clip 'd', expected"):
        load(tmp_path / "clips", weights=weights)


@pytest.mark.parametrize("damage", ["cut frames", "no frames", "bad JSON", "other JSON", "wrong lengths"])
def test_a_damaged_cache_is_rebuilt(damage: str, tmp_path: Path, load: Any, decoded: list[str]) -> None:
    folder = write_pictures(tmp_path / "clip", grey_levels(3))
    load(folder)
    (entry,) = (tmp_path / "cache").iterdir()
    index = entry / "index.json"
    if damage == "cut frames":
        os.truncate(entry / "frames.u8", 100)
    elif damage == "no frames":
        (entry / "frames.u8").unlink()
    elif damage == "bad JSON":
        index.write_bytes(index.read_bytes()[:-9])
    elif damage == "other JSON":
        index.write_text("[]")
    else:
        index.write_text(index.read_text().replace('"frames": 3', '"frames": 4'))
    assert load(folder).frames[:, 0, 0, 0].tolist() == [0, 10, 20]
    assert len(decoded) == 2 and len(list((tmp_path / "cache").iterdir())) == 1


def test_a_killed_run_leaves_no_cache_that_could_be_used(tmp_path: Path, load: Any) -> None:
    folder = write_pictures(tmp_path / "clip", grey_levels(5))
    program = f"""
import itertools, os, signal
from styleinv.training import clip_cache, data
original = clip_cache.square_frames
def killed(*arguments):
    yield from itertools.islice(original(*arguments), 3)
    os.kill(os.getpid(), signal.SIGKILL)
clip_cache.square_frames = killed
data.load_clips({str(folder)!r}, 32, cache={str(tmp_path / "cache")!r}, progress=False)
"""
    finished = subprocess.run([sys.executable, "-c", program], cwd=tmp_path, check=False)
    assert finished.returncode == -signal.SIGKILL
    (left,) = (tmp_path / "cache").iterdir()
    assert left.suffix == ".part"
    assert load(folder).total_frames == 5 and left.exists()  # it could be another process at work

    day_before_yesterday = time.time() - 2 * 24 * 3600
    for file in (*left.iterdir(), left):
        os.utime(file, (day_before_yesterday, day_before_yesterday))
    load(folder, resolution=16)
    assert not left.exists()


def test_an_interrupted_run_cleans_up(tmp_path: Path, load: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = write_pictures(tmp_path / "clip", grey_levels(5))
    original = clip_cache.square_frames

    def interrupted(*arguments: Any) -> Any:
        yield from itertools.islice(original(*arguments), 3)
        raise KeyboardInterrupt

    monkeypatch.setattr(clip_cache, "square_frames", interrupted)
    with pytest.raises(KeyboardInterrupt):
        load(folder)
    assert not list((tmp_path / "cache").iterdir())


def test_two_processes_may_decode_the_same(tmp_path: Path, load: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = write_pictures(tmp_path / "clip", grey_levels(3))
    original = clip_cache.square_frames

    def overtaken(*arguments: Any) -> Any:
        with monkeypatch.context() as context:
            context.setattr(clip_cache, "square_frames", original)
            load(folder)
        return original(*arguments)

    monkeypatch.setattr(clip_cache, "square_frames", overtaken)
    assert load(folder).total_frames == 3
    assert len(list((tmp_path / "cache").iterdir())) == 1


def test_the_default_cache_is_private(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = write_pictures(tmp_path / "clip", grey_levels(1))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    load_clips(folder, 8, progress=False)
    monkeypatch.setenv("XDG_CACHE_HOME", "")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    load_clips(str(folder), 8, progress=False)
    for cache in (tmp_path / "xdg" / "styleinv", tmp_path / "home" / ".cache" / "styleinv"):
        assert cache.stat().st_mode & 0o777 == 0o700 and len(list(cache.iterdir())) == 1


def test_a_cache_that_cannot_be_written(tmp_path: Path, load: Any) -> None:
    (tmp_path / "cache").write_text("a file where the folder should be")
    with pytest.raises(DataError, match=r"clip: cannot be read, or not cached in .*cache"):
        load(write_pictures(tmp_path / "clip", grey_levels(1)))
