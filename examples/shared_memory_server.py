"""Plays a clip for other processes: python examples/shared_memory_server.py sky.bundle

It prints the name of a block of shared memory, into which it writes frames until Ctrl-C. Any number of processes can
look at them there: python examples/shared_memory_client.py NAME. `frame_ring.py` says how the block is laid out.
"""

import argparse
import signal
import sys
from contextlib import closing, suppress

from frame_ring import RingWriter

from styleinv.runtime import Player, Rollout


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bundle")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--fps", type=float, default=25.0)
    parser.add_argument("--name", help="name of the shared memory (default: a new one)")
    arguments = parser.parse_args()
    # `kill` ends the server like Ctrl-C does: through the `with` below, which removes the shared memory. Where the
    # server is given no time for that (`kill -9`), a helper process of Python's removes it.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    with (
        suppress(KeyboardInterrupt),
        Rollout.open(arguments.bundle, arguments.seed) as rollout,
        closing(RingWriter(*rollout.size, name=arguments.name)) as ring,
        Player(rollout, arguments.fps, policy="latest") as player,
    ):
        print(ring.name, flush=True)
        for frame in player:
            ring.write(frame, player.position)
    print("the shared memory is removed", file=sys.stderr)


if __name__ == "__main__":
    main()
