"""Looks at the frames that another process plays: python examples/shared_memory_client.py NAME [FRAMES]

NAME is what examples/shared_memory_server.py prints. Needs numpy alone; frames are used where they lie, without a copy.
"""

import sys
from contextlib import closing

from frame_ring import RingReader


def describe(frame, t):
    red, green, blue = frame.mean(axis=(0, 1))
    return f"t = {t:g}: mean colour {red:.1f} {green:.1f} {blue:.1f}"


def main(name, frames=100):
    try:
        reader = RingReader(name)
    except FileNotFoundError:
        sys.exit(f"{name}: found no shared memory of this name; is the server running?")
    with closing(reader):
        for _ in range(int(frames)):
            line = reader.read(describe)
            if line is None:
                sys.exit("the server has ended")
            print(line, flush=True)


if __name__ == "__main__":
    if len(sys.argv) not in (2, 3):
        sys.exit(__doc__)
    main(*sys.argv[1:])
