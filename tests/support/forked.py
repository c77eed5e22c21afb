"""Processes for tests: forked from one that has torch imported, since importing it takes seconds."""

import multiprocessing
from multiprocessing.connection import wait

CONTEXT = multiprocessing.get_context("forkserver")
# Optimizers import torch._dynamo when the first one is made.
CONTEXT.set_forkserver_preload(["torch._dynamo", "styleinv.training.loop", "styleinv.training.stages.transfer"])


def start(function, *arguments):
    process = CONTEXT.Process(target=function, args=arguments, daemon=True)
    process.start()
    return process


def finish(*processes):
    """Until all have ended well; where one fails the others, which may wait for it, are ended."""
    try:
        while running := [process.sentinel for process in processes if process.exitcode is None]:
            wait(running)
            codes = [process.exitcode for process in processes]
            assert all(code in (None, 0) for code in codes), f"exit codes {codes}, see their messages"
    finally:
        for process in processes:
            process.kill()
            process.join()
