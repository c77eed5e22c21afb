"""The kernels in Triton's interpreter, on the CPU.

TRITON_INTERPRET=1 holds for a whole process, of which other tests want compiled kernels: these files are collected only
where it is set, and `tests/kernels/test_interpreted.py` runs each in a process of its own. By hand:

    TRITON_INTERPRET=1 pytest tests/kernels/interpreted
"""

import os

collect_ignore_glob = [] if os.environ.get("TRITON_INTERPRET") == "1" else ["test_*.py"]
