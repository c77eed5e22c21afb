"""`styleinv animate`: finds the latent of a picture and plays the clip that begins there."""

from __future__ import annotations

import argparse
import sys

import numpy as np
import numpy.typing as npt

from styleinv.runtime.arguments import add_playing, frame_count, parse_playing, seed_number
from styleinv.runtime.bundle import Bundle
from styleinv.runtime.errors import BundleError
from styleinv.runtime.inversion import invert
from styleinv.runtime.pictures import as_image, fit_picture, read_picture
from styleinv.runtime.progress import write_frames
from styleinv.runtime.rollout import Rollout
from styleinv.runtime.sessions import Sessions

DESCRIPTION = """\
Makes a picture move. An encoder finds the latent whose picture comes nearest to yours, and the
clip that begins there is played: from left to right your picture, what the model makes of it
(its inversion), and the animation. The bundle must hold such an encoder: `styleinv export
--inversion` puts it in.
"""
EXAMPLES = """\
examples:
  styleinv animate faces.bundle photo.png --out clip.mp4
      ten seconds (250 frames at 25 per second), the three side by side
  styleinv animate faces.bundle photo.jpg --seed 3 --animation-only --out clip.mp4
      other motion, and the animation alone
  styleinv animate faces.bundle photo.jpg --transfer arcane --out clip.mp4
      on the right of the three, the animation in the style arcane, which the bundle holds
"""


def main(argv: list[str]) -> int:
    """Runs `styleinv animate`; returns the exit status. Raises StyleInVError where bundle, picture or target is bad."""
    arguments = _parsed(argv)
    bundle = Bundle.open(arguments.bundle, verify_hashes=not arguments.no_verify_hash)
    if bundle.kind != "styleinv":
        raise BundleError(
            f"{arguments.bundle}: kind: found {bundle.kind}, expected styleinv: only a model of clips has motion"
        )
    fps = arguments.fps or bundle.frame_rate
    picture = fit_picture(read_picture(arguments.picture), bundle.generator["resolution"])
    with Sessions(
        bundle,
        engine=arguments.engine,
        precision=arguments.precision,
        threads=arguments.threads,
        trust=arguments.trust,
    ) as sessions:
        w0 = invert(sessions, as_image(picture))
        rollout = Rollout(
            sessions, arguments.seed, w0=w0, transfer=arguments.transfer, latent_stride=arguments.latent_stride
        )
        if arguments.loop is not None:
            rollout = rollout.loop(arguments.loop)
        print(f"{arguments.bundle}: playing on {rollout.engine}", file=sys.stderr)
        if arguments.animation_only:
            still: list[npt.NDArray[np.uint8]] = []
            transfers = [arguments.transfer]
        else:
            still = [picture, sessions.session("synthesis").run({"w": w0[None]}, ["frame"])["frame"][0]]
            transfers = [None] if arguments.transfer is None else [None, arguments.transfer]
        rollout.warm_up(arguments.start)  # loads the graphs, so that the timings are those of steady playing
        count = frame_count(arguments, rollout, fps)
        times = rollout.times(fps, arguments.start, arguments.speed, count)
        frames = (np.hstack([*still, *moving]) for moving in rollout.renderings(times, transfers, arguments.batch))
        height, width = rollout.size
        size = height, width * (len(still) + len(transfers))
        write_frames(
            frames,
            arguments.out,
            fps=fps,
            size=size,
            count=count,
            engine=rollout.engine,
            format=arguments.format,
            crf=arguments.crf,
        )
    return 0


def _parsed(argv: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="styleinv animate",
        description=DESCRIPTION,
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("bundle", metavar="BUNDLE", help="folder of the bundle, such as faces.bundle")
    add(
        "picture",
        metavar="PICTURE",
        help="picture to animate: PNG, JPEG, WebP or BMP of any size, of which the centred square is taken; best "
        "framed like those that the model learned from",
    )
    add(
        "--seed",
        "--motion-seed",
        type=seed_number,
        default=0,
        metavar="N",
        help="which motion (default 0); both names mean the same here, as the picture takes the place of the content",
    )
    add(
        "--transfer",
        metavar="NAME",
        help="add the animation in another style, on the right: one of the bundle's transfers, which `styleinv export "
        "--transfer` puts in",
    )
    add(
        "--animation-only",
        action="store_true",
        help="write the animation alone, in the style of --transfer where one is given",
    )
    add_playing(parser)
    return parse_playing(parser, argv)
