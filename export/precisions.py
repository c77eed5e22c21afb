"""Which arithmetic a precision is: the dtype of convolutions, and the form of those that upsample."""

from __future__ import annotations

import functools

import torch

from styleinv.export.graphs import Arithmetic
from styleinv.export.upsampling import Form, measured_form

DTYPES = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}

# Graphs in fp16 and bf16 are for TensorRT and CUDA, where no form has been timed; TensorRT for RTX has no transposed
# convolution in bfloat16.
UNTIMED_FORMS: dict[str, Form] = {"fp16": "transposed", "bf16": "split"}


def arithmetic_in(precision: str, target: str = "openvino") -> Arithmetic:
    """The arithmetic of graphs in this precision; those in fp32 are made fastest for the engine `target` on a CPU."""
    if precision == "fp32":
        return Arithmetic(torch.float32, functools.partial(measured_form, target))
    return Arithmetic(DTYPES[precision], lambda inputs, outputs, size: UNTIMED_FORMS[precision])
