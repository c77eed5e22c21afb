"""What an evaluation shows: a grid of real and drawn pictures, a contact sheet of clips over time, and looping clips.

Shapes: N pictures, B clips, T frames, H W size of a frame.
"""

from __future__ import annotations

import io

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from styleinv.training.data import ClipSet
from styleinv.training.evaluation.generated import draw_clips, draw_pictures
from styleinv.training.generator import Generator
from styleinv.training.model import StyleInV

GRID = (4, 8)  # rows and columns, of real and of drawn pictures each
CONTACT_ROWS = 8
CONTACT_TIMES = (0, 8, 20, 40, 70, 130, 250, 500, 1000, 9999)  # frame indices, off the usual anchors
LOOPS, LOOP_FRAMES = 4, 64
QUALITY = 85  # of WebP
GAP = 4  # pixels between the halves of the grid
HEADING = 14  # pixels above a contact sheet, for the frame indices
WHITE = 255

Frames = NDArray[np.uint8]


def draw_all(model: Generator | StyleInV, clips: ClipSet, frame_rate: float) -> dict[str, bytes]:
    """File name -> its bytes: samples.png, real pictures above drawn ones; of clips contact.png and clip_N.webp too."""
    count = GRID[0] * GRID[1]
    rows = clips.rows(np.linspace(0, clips.total_frames - 1, count).round().astype(np.int64))
    generator = model if isinstance(model, Generator) else model.generator
    found = {"samples.png": sample_grid(np.asarray(clips.frames[rows]), draw_pictures(generator, range(count)))}
    if isinstance(model, StyleInV):
        contact, _ = draw_clips(model, range(CONTACT_ROWS), CONTACT_TIMES)
        found["contact.png"] = contact_sheet(contact, CONTACT_TIMES)
        for index in range(LOOPS):
            clip, _ = draw_clips(model, [index], range(LOOP_FRAMES))
            found[f"clip_{index}.webp"] = looping_clip(clip[0], frame_rate)
    return found


def sample_grid(real: Frames, drawn: Frames) -> bytes:
    """A PNG of pictures [N, H, W, 3], N = rows x columns of `GRID`: the real ones above, the drawn ones below."""
    upper, lower = (_tiled(pictures.reshape(*GRID, *pictures.shape[1:])) for pictures in (real, drawn))
    gap = np.full((GAP, upper.shape[1], 3), WHITE, np.uint8)
    return _encoded(np.concatenate([upper, gap, lower]))


def contact_sheet(clips: Frames, times: tuple[int, ...]) -> bytes:
    """A PNG of clips [B, T, H, W, 3]: each row a clip, each column a frame index, which is written above it."""
    sheet = _tiled(clips)
    heading = Image.new("RGB", (sheet.shape[1], HEADING), (WHITE, WHITE, WHITE))
    pen = ImageDraw.Draw(heading)
    for place, t in enumerate(times):
        pen.text((place * clips.shape[3] + 2, 1), str(t), fill=(0, 0, 0))
    return _encoded(np.concatenate([np.asarray(heading), sheet]))


def looping_clip(clip: Frames, frame_rate: float) -> bytes:
    """An animated WebP of a clip [T, H, W, 3] that starts again for ever."""
    first, *others = (Image.fromarray(frame) for frame in clip)
    buffer = io.BytesIO()
    first.save(buffer, "WEBP", save_all=True, append_images=others, duration=round(1000 / frame_rate), loop=0,
               quality=QUALITY)  # fmt: skip
    return buffer.getvalue()


def _tiled(pictures: Frames) -> Frames:
    """[rows, columns, H, W, 3] -> one picture [rows H, columns W, 3]."""
    rows, columns, height, width, _ = pictures.shape
    return pictures.transpose(0, 2, 1, 3, 4).reshape(rows * height, columns * width, 3)


def _encoded(picture: Frames) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(picture).save(buffer, "PNG", optimize=True)
    return buffer.getvalue()
