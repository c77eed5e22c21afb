"""What verification allows in each precision: the one table. What is out of tolerance is an error, never a warning."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Tolerance:
    """Bounds on what comes out of a graph, and on whole frames, against the reference."""

    relative: float  # largest error of a float output, over its largest value
    cosine: float  # least cosine between an output and the reference
    levels: int | None  # largest difference of a byte; None: any, as PSNR and SSIM bound it
    psnr: float  # dB, least of a picture or frame
    ssim: float  # least of a picture or frame
    drift: float  # largest error of a latent in a long clip, over its length


TOLERANCES = {
    "fp32": Tolerance(relative=1e-4, cosine=0.999999, levels=1, psnr=60.0, ssim=0.9995, drift=1e-4),
    "fp16": Tolerance(relative=2e-2, cosine=0.9995, levels=None, psnr=48.0, ssim=0.995, drift=1e-2),
    # Latents are fp16's; pictures are kept to 35 dB on a few latents (see `eight_bits.BOUND_PSNR_DB`), and come out a
    # little worse on others.
    "fp8": Tolerance(relative=3e-1, cosine=0.99, levels=None, psnr=32.0, ssim=0.9, drift=1e-2),
    "int8": Tolerance(relative=3e-1, cosine=0.99, levels=None, psnr=32.0, ssim=0.9, drift=1e-2),
    "bf16": Tolerance(relative=1e-1, cosine=0.995, levels=None, psnr=42.0, ssim=0.98, drift=5e-2),
}
