"""`styleinv import`: brings a checkpoint of the authors' in."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from styleinv.export.official import read_model, write_checkpoint
from styleinv.runtime.errors import CheckpointError
from styleinv.training.checkpoint_file import parameters_by_part

DESCRIPTION = """\
Turn a pickle of StyleInV, of its pSp encoder or of StyleGAN2-ADA into a checkpoint of this package.
The pickle is read as data: nothing in it is executed, whoever made it.
"""
EXAMPLES = """\
examples:
  styleinv import network-snapshot.pkl --out model.safetensors
      a whole StyleInV model (G and SI_ema); a pSp file gives an inversion model, one of StyleGAN2-ADA an image model
  styleinv import stylegan2.pkl --network G --out image.safetensors
      the generator as trained, instead of its moving average G_ema
  styleinv import arcane.pkl --transfer --out arcane.safetensors
      a generator fine-tuned for style transfer; `styleinv export --transfer arcane=arcane.safetensors` takes it
"""


def main(argv: list[str]) -> int:
    """Import one file."""
    parser = argparse.ArgumentParser(
        prog="styleinv import",
        description=DESCRIPTION,
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("pickle", type=Path, metavar="FILE", help="the .pkl file")
    parser.add_argument("--out", type=Path, required=True, metavar="CHECKPOINT", help="the .safetensors file to write; "
                        "an earlier one is replaced")  # fmt: skip
    parser.add_argument("--network", metavar="NAME", help="the network of the file to take, such as G or SI "
                        "(default: the first that the file has of SI_ema, SI, pSp, G_ema and G)")  # fmt: skip
    parser.add_argument("--transfer", action="store_true", help="mark a StyleGAN2-ADA generator as one for style "
                        "transfer, to be exported beside the model whose latents it takes")  # fmt: skip
    arguments = parser.parse_args(argv)
    if arguments.out.suffix != ".safetensors":
        raise CheckpointError(f"{arguments.out}: found the suffix {arguments.out.suffix!r}, expected .safetensors")
    model = read_model(arguments.pickle, network=arguments.network, transfer=arguments.transfer)
    write_checkpoint(arguments.out, model)
    resolution = model.config.model.generator.resolution
    count = sum(parameters_by_part({name: array.shape for name, array in model.tensors.items()}).values())
    print(
        f"{arguments.out} written: kind {model.kind}, {resolution}x{resolution}, {count / 1e6:.2f} M parameters, "
        f"from {', '.join(model.parts.values())}",
        file=sys.stderr,
    )
    return 0
