"""The operators of the model: a plain reference in torch (`reference.py`), shared by training, tests and export, and
fused Triton kernels for GPUs, as operators of torch (`ops.py`)."""
