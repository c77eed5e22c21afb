"""`styleinv export`: compile a checkpoint into a bundle."""

from __future__ import annotations

import argparse
import sys
import tempfile
from pathlib import Path

import torch

from styleinv.export.additions import Additions
from styleinv.export.eight_bits import as_table as quantisation_table
from styleinv.export.engine_options import DEFAULT_BATCH, DEFAULT_TARGETS, EngineOptions
from styleinv.export.engines import add_engines, as_table
from styleinv.export.forms import TARGETS
from styleinv.export.lint_report import report_lint
from styleinv.export.writer import NOISE_MODES, export_bundle, write_bundle
from styleinv.runtime.arguments import whole_number
from styleinv.runtime.bundle import Bundle
from styleinv.runtime.cache_folder import CACHE_VARIABLE
from styleinv.runtime.engine_library import ENGINE_LIBRARIES
from styleinv.runtime.manifest_fields import PRECISIONS, TRANSFER_NAME, is_capability
from styleinv.training.checkpoint import load_checkpoint

DESCRIPTION = """\
Compile a checkpoint into a bundle: the folder that `styleinv stream` and applications play. Every graph is
checked against PyTorch first; where one differs, nothing is written. With --engine its graphs are compiled, for GPUs
mostly; given a bundle instead of a checkpoint, that is all that is done, and the engines are added to it.
"""
EXAMPLES = """\
examples:
  styleinv export run/motion.safetensors --out sky.bundle
      what `styleinv stream sky.bundle` plays
  styleinv export model.safetensors --inversion psp.safetensors --out faces.bundle
      with an inversion encoder: `styleinv animate faces.bundle photo.png` starts from a picture
  styleinv export model.safetensors --precision fp16 bf16 --out sky.bundle
      with graphs in half precision, too, for engines of GPUs
  styleinv export model.safetensors --transfer arcane=style.safetensors --out faces.bundle
      with another style: `styleinv stream faces.bundle --transfer arcane` plays in it
  styleinv export model.safetensors --out sky.bundle --engine rtx --compute-capability 8.6 8.9 12.0
      with TensorRT for RTX engines in fp16 for three generations of GPUs; none of them need be here
  styleinv export sky.bundle --engine tensorrt --batch 1 1 8
      adds TensorRT engines for the GPU at hand, for batches up to 8
  styleinv export model.safetensors --out sky.bundle --engine inductor
      with packages of PyTorch's Inductor: `styleinv stream sky.bundle --engine inductor` plays with PyTorch alone
  styleinv export sky.bundle --engine rtx --dry-run
      says what in its graphs a GPU's compiler would not take, and how to mend it; writes nothing
"""


def main(argv: list[str]) -> int:
    """Export and verify; or add engines to a bundle."""
    parser = _parser()
    arguments = parser.parse_args(argv)
    names = [name for name, _ in arguments.transfer]
    for name in names:
        if names.count(name) > 1:
            parser.error(f"--transfer {name}: found {names.count(name)} files, expected one for each name")
    from_bundle = arguments.checkpoint.is_dir()
    _check_together(parser, arguments, from_bundle)
    for_gpus = bool(arguments.engine) and (arguments.engine != ["inductor"] or torch.cuda.is_available())
    precisions = arguments.precision or (["fp16"] if for_gpus else ["fp32"])
    engines = [] if arguments.dry_run else _engine_options(arguments, precisions)
    if from_bundle and arguments.dry_run:
        return report_lint(Bundle.open(arguments.checkpoint), arguments.engine, precisions, _targets(arguments))
    if from_bundle:
        built = add_engines(arguments.checkpoint, engines)
        print(as_table(built), file=sys.stderr)
        return 0
    checkpoint = load_checkpoint(arguments.checkpoint)
    additions = Additions(
        load_checkpoint(arguments.inversion, kind="inversion") if arguments.inversion else None,
        {name: load_checkpoint(file) for name, file in arguments.transfer},
    )
    if arguments.dry_run:
        with tempfile.TemporaryDirectory(prefix="styleinv-dry-run-") as scratch:
            additions.check(checkpoint)
            write_bundle(
                checkpoint,
                Path(scratch),
                additions,
                noise=arguments.noise or NOISE_MODES[0],
                precisions=precisions,
                target=arguments.optimize_for or TARGETS[0],
                progress=True,
            )
            return report_lint(Bundle.open(scratch), arguments.engine, precisions, _targets(arguments))
    export = export_bundle(
        checkpoint,
        arguments.out,
        noise=arguments.noise or NOISE_MODES[0],
        precisions=precisions,
        target=arguments.optimize_for or TARGETS[0],
        inversion=additions.inversion,
        transfers=additions.transfers,
        engines=engines,
    )
    result = export.verification
    worst = max(comparison.share for comparison in result.comparisons)
    for precision, entry in (Bundle.open(arguments.out, verify_hashes=False).manifest.get("precisions") or {}).items():
        if "quantization" in entry:
            print(f"synthesis in {precision}\n{quantisation_table(entry['quantization'])}", file=sys.stderr)
    if export.engines:
        print(as_table(export.engines), file=sys.stderr)
    print(
        f"{arguments.out} written: {len(result.comparisons)} comparisons with PyTorch passed, "
        f"the closest at {worst:.0%} of its tolerance; see {arguments.out / 'report.md'}",
        file=sys.stderr,
    )
    return 0


def _check_together(parser: argparse.ArgumentParser, arguments: argparse.Namespace, from_bundle: bool) -> None:
    """Leaves as argparse does where options do not go with each other."""
    given = {
        "--compute-capability": arguments.compute_capability,
        "--batch": arguments.batch,
        "--refit": arguments.refit,
        "--plugins": arguments.plugins,
        "--dry-run": arguments.dry_run,
    }
    if arguments.dry_run and "inductor" in arguments.engine:
        parser.error("--dry-run looks in the graphs' files, which inductor does not compile: give rtx or tensorrt")
    for option, value in given.items():
        if value and not arguments.engine:
            parser.error(f"{option} is about engines: give --engine, too")
    if arguments.plugins and "tensorrt" not in arguments.engine:
        parser.error("--plugins is about engines of TensorRT: give --engine tensorrt, too")
    if arguments.batch and arguments.batch != sorted(arguments.batch):
        parser.error(f"--batch: found {arguments.batch}, expected the least first and the largest last")
    if from_bundle:
        if not arguments.engine:
            parser.error(f"{arguments.checkpoint} is a folder: give --engine, to add engines to that bundle, or a "
                         "checkpoint's .safetensors file")  # fmt: skip
        others = ("out", "inversion", "transfer", "noise", "optimize_for", "plugins")
        changed = [f"--{name.replace('_', '-')}" for name in others if getattr(arguments, name)]
        if changed:
            parser.error(f"{', '.join(changed)}: engines are added to {arguments.checkpoint} itself, from its graphs")
    elif arguments.out is None and not arguments.dry_run:
        parser.error("give --out, the folder to write")


def _engine_options(arguments: argparse.Namespace, precisions: list[str]) -> list[EngineOptions]:
    """What engines to build. Raises EngineError, before anything is done, where one cannot be built here."""
    batch = tuple(arguments.batch or DEFAULT_BATCH)
    return [
        EngineOptions(
            engine, precision, _targets(arguments), batch, arguments.refit, arguments.plugins and engine == "tensorrt"
        ).resolved()
        for engine in arguments.engine
        for precision in precisions
    ]


def _targets(arguments: argparse.Namespace) -> tuple[str, ...]:
    return tuple(arguments.compute_capability or ())


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="styleinv export",
        description=DESCRIPTION,
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("checkpoint", type=Path, metavar="CHECKPOINT", help="the .safetensors file of a trained model; "
                        "or the folder of a bundle, to add engines to")  # fmt: skip
    parser.add_argument("--out", type=Path, metavar="BUNDLE", help="the folder to write, such as "
                        "sky.bundle; an earlier bundle there is replaced")  # fmt: skip
    parser.add_argument("--noise", choices=NOISE_MODES,
                        help="const: the model's fixed noise, baked in (default); none: without")  # fmt: skip
    parser.add_argument("--inversion", type=Path, metavar="FILE", help="checkpoint of an inversion encoder, which "
                        "finds the latent of a picture: for `styleinv animate`. The model's own encoder, modulated "
                        "over time, does not do that, so it is given beside it")  # fmt: skip
    parser.add_argument("--precision", nargs="+", choices=PRECISIONS, metavar="PRECISION",
                        help=f"what graphs to write, and to build engines from: {', '.join(PRECISIONS)}. Those in fp32 "
                        "are always written; they are what a CPU plays, in bf16, too. The others are for GPUs; fp8 and "
                        "int8 take `styleinv[quantize]` (default fp32; fp16 with --engine, but for inductor on a "
                        "CPU)")  # fmt: skip
    parser.add_argument("--optimize-for", choices=TARGETS,
                        help="the engine on which the fp32 graphs are fastest; they run on all of them "
                        "(default openvino)")  # fmt: skip
    parser.add_argument("--transfer", type=_named_file, action="append", default=[], metavar="NAME=FILE",
                        help="checkpoint of a generator fine-tuned for another style, and a name for that style, of "
                        "letters, digits, - and _: for `styleinv stream --transfer NAME`; may be given several "
                        "times")  # fmt: skip
    engines = parser.add_argument_group("engines")
    engines.add_argument("--engine", nargs="+", choices=list(ENGINE_LIBRARIES), default=[], metavar="ENGINE",
                         help="compile every graph: rtx, with TensorRT for RTX, for GPUs that need not be here; "
                         "tensorrt, with TensorRT, for the GPU at hand; inductor, with PyTorch and its fused kernels, "
                         "for the GPU at hand, or else for CPUs, from a checkpoint only. Engines come from the user's "
                         f"cache where nothing changed (${CACHE_VARIABLE}, or else ~/.cache/styleinv)")  # fmt: skip
    engines.add_argument("--compute-capability", nargs="+", type=_capability, metavar="N.N",
                         help="the GPUs that rtx engines are for: 8.6 is GeForce RTX 30, 8.9 is 40, 12.0 is 50 "
                         f"(default {' '.join(DEFAULT_TARGETS)})")  # fmt: skip
    engines.add_argument("--batch", nargs=3, type=whole_number(1), metavar=("MIN", "OPT", "MAX"),
                         help="the batches that an engine takes, and the one that it is fastest at (default "
                         f"{' '.join(map(str, DEFAULT_BATCH))})")  # fmt: skip
    engines.add_argument("--refit", action="store_true", help="make engines whose weights can be exchanged: transfers "
                         "then need no engines of their own. Takes a GPU")  # fmt: skip
    engines.add_argument("--plugins", action="store_true", help="tensorrt: draw with the fused Triton kernels, which "
                         "are compiled into the engine, in fp32, fp16 or bf16; from a checkpoint only. rtx has no "
                         "plugins, and gets the plain graphs")  # fmt: skip
    engines.add_argument("--dry-run", action="store_true", help="write nothing; look in the graphs for what the "
                         "engine's compiler does not take, and say how to mend it; the exit status is 1 where there is "
                         "any")  # fmt: skip
    return parser


def _capability(text: str) -> str:
    if not is_capability(text):
        raise argparse.ArgumentTypeError(f"found {text!r}, expected a compute capability, such as 8.9")
    return text


def _named_file(text: str) -> tuple[str, Path]:
    name, _, file = text.partition("=")
    if not file or not TRANSFER_NAME.holds(name):
        raise argparse.ArgumentTypeError(
            f"found {text!r}, expected NAME=FILE, such as arcane=style.safetensors, with {TRANSFER_NAME.expected}"
        )
    return name, Path(file)
