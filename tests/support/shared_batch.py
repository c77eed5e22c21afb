"""One step of every stage, by one process or by two of them: what tests of a shared batch compare.

Optimizers have a learning rate of 0 here. Adam's first step is the gradient's sign, which would make much of what
rounding leaves of gradients that are nothing else.
"""

import itertools
import os
import signal

import torch
from torch import nn

from styleinv.training import workers
from styleinv.training.config import with_overrides
from styleinv.training.initialize import initialize
from styleinv.training.loop import train
from styleinv.training.model import build_image_discriminator, build_inversion
from styleinv.training.perceptual import discriminator_distance
from styleinv.training.shared_batch_norm import share_batch_norms
from styleinv.training.stages.image import ImageStage
from styleinv.training.stages.inversion import InversionStage
from styleinv.training.stages.motion import MotionStage
from styleinv.training.stages.transfer import TransferStage

STAGES = ("image", "pairs", "inversion", "motion", "transfer")
PAIRED = ["image.style_mixing=0", "image.pair_weight=2", "image.pair_interval=4", "discriminator.sees_texture=true"]
STEP = 16  # with R1, path lengths, and a motion model that learns
SETTINGS = [
    "compute.precision=fp32",
    "model.generator.use_noise=true",
    "discriminator.group_size=2",
    "image.style_mixing=0.5",
    "image.r1_interval=16",
    "motion.batch=4",
    "motion.r1_interval=16",
    "transfer.batch=4",
    "transfer.r1_interval=16",
    "transfer.trainable_resolution=8",
]


def build(name, config, clips):
    """A stage in the state in which all its losses count: noise, augmentation, distances from where it came from."""
    generator = initialize(config, seed=5).generator
    set_noise(generator)
    torch.manual_seed(11)
    if name in ("image", "pairs"):
        stage = ImageStage(with_overrides(config, PAIRED) if name == "pairs" else config, clips, 3)
        set_noise(stage.generator)
    elif name == "inversion":
        distance = discriminator_distance(build_image_discriminator(config))
        stage = InversionStage(config, clips, 3, generator, distance)
    elif name == "motion":
        stage = MotionStage(config, clips, 3, generator, build_inversion(config.model).eval())
    else:
        stage = TransferStage(config, clips, 3, generator, discriminator_distance(build_image_discriminator(config)))
        with torch.no_grad():
            stage.generator.synthesis.const.mul_(1.5)
    if name != "inversion":
        stage.adversary.probability.p = 0.5
    return stage


def set_noise(generator):
    for name, parameter in generator.named_parameters():
        if name.endswith("noise_strength"):
            parameter.data.fill_(0.3)


def gradients_of_a_step(name, config, clips):
    """What the optimizers of a stage are given, its losses, and all its networks' buffers after the step."""
    stage = build(name, config, clips)
    names = {
        id(parameter): f"{key}.{path}"
        for key, network in stage.networks.items()
        for path, parameter in network.named_parameters()
    }
    gradients, steps = {}, itertools.count()

    def keep(optimizer, *_):
        number = next(steps)
        for parameter in optimizer.param_groups[0]["params"]:
            if parameter.grad is not None:
                gradients[f"{number} {names[id(parameter)]}"] = parameter.grad.clone()

    for optimizer in stage.optimizers.values():
        optimizer.register_step_pre_hook(keep)
        for group in optimizer.param_groups:
            group["lr"] = 0.0
    torch.manual_seed(1)
    losses = stage.step(STEP)
    buffers = {
        f"{key}.{path}": buffer.clone()
        for key, network in stage.networks.items()
        for path, buffer in network.named_buffers()
    }
    return {"gradients": gradients, "losses": losses, "buffers": buffers}


def batch_norm_of(rows):
    """A batch normalisation's results for those of 6 samples, its gradients and its statistics."""
    torch.manual_seed(2)
    x, slope = torch.randn(6, 5, 4, 3) * 3 + 1, torch.randn(6, 5, 4, 3)
    norm = nn.BatchNorm2d(5, momentum=0.3)
    nn.init.normal_(norm.weight)
    nn.init.normal_(norm.bias)
    network = nn.Sequential(norm)
    share_batch_norms(network)
    part = x[rows].requires_grad_()
    y = network(part)
    (y * slope[rows]).sum().backward()
    workers.reduce_gradients(network)
    norm = network[0]
    return {
        "type": type(norm).__name__,
        "rows": {"y": y.detach(), "x gradient": part.grad},
        "all": {"weight": norm.weight.grad, "bias": norm.bias.grad, **dict(norm.named_buffers())},
    }


def share(folder, rank, port, config, clips):
    """Be process `rank` of two, as torchrun would start it; what came out of it goes to a file."""
    os.environ.update(
        RANK=str(rank), WORLD_SIZE="2", MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port), GLOO_SOCKET_IFNAME="lo"
    )
    torch.set_num_threads(1)
    with workers.joined(torch.device("cpu")):
        found = {name: gradients_of_a_step(name, config, clips) for name in STAGES}
        found["batch norm"] = batch_norm_of(torch.arange(rank, 6, 2))
        found["place"] = (workers.rank(), workers.count())
        found["sum"] = workers.total(torch.tensor([1.0 + rank])).item()
        found["flags"] = (workers.any_of(rank == 1), workers.any_of(False))
        found["interrupted"] = interrupted_training(folder / f"run{rank}", config, clips)
    found["afterwards"] = (workers.rank(), workers.count())
    torch.save(found, folder / f"{rank}.pt")


def interrupted_training(out, config, clips):
    """Whether Ctrl-C in the second process ends a training in this one."""
    stage = build("inversion", with_overrides(config, ["snapshot_images=400"]), clips)
    step = stage.step

    def interrupted(index):
        if workers.rank() == 1 and index == 1:
            os.kill(os.getpid(), signal.SIGINT)
        return step(index)

    stage.step = interrupted
    try:
        train(stage, out, images=400, seed=3, resume=False, progress=False)
    except KeyboardInterrupt:
        return True
    return False
