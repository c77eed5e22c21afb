"""A short training that kills its own process, in a module that a forked process can import."""

import os
import signal
import sys

import torch

from styleinv.training.loop import train
from styleinv.training.stages.image import ImageStage

STEPS = 4  # with a checkpoint after each


def train_images(config, clips, out, fatal_rename=0):
    """All steps, or those that are left of them. The process is killed before the file number `fatal_rename` that it
    writes gets its name."""
    renames = 0

    def kill(event, names):
        nonlocal renames
        if event == "os.rename" and str(out) in str(names[1]):
            renames += 1
            if renames == fatal_rename:
                os.kill(os.getpid(), signal.SIGKILL)

    if fatal_rename:
        sys.addaudithook(kill)
    torch.set_num_threads(1)
    stage = ImageStage(config, clips, 3)
    resume = (out / "image.state.pt").exists()
    train(stage, out, images=STEPS * stage.images_per_step, seed=3, resume=resume, progress=False)
