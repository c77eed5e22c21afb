"""Motion codes and time codes, written straight from their formulas (section 3.1 of StyleInV) in extended precision."""

import functools
import math
from collections.abc import Callable
from typing import Any

import numpy as np

from styleinv.runtime.noise import MOTION_DOMAIN, standard_normal


def reference_code(anchor: int, tensors: dict[str, np.ndarray], config: dict[str, Any], seed: int) -> np.ndarray:
    """u_k by two plain loops over the taps, every tap in its place, longdouble."""
    K, Z, aware = config["kernel_size"], config["noise_dim"], config.get("first_frame_aware", True)
    real = {name: array.astype(np.longdouble) for name, array in tensors.items()}

    def noise(k: int) -> np.ndarray:
        if k == 0 and aware:
            return real["first_code_noise"]
        return standard_normal(seed, MOTION_DOMAIN, k, Z).astype(np.longdouble)

    def layer(number: int, rows: Callable[[int], np.ndarray], k: int) -> np.ndarray:
        weight, bias = real[f"conv.{number}.weight"], real[f"conv.{number}.bias"]
        total = bias * np.longdouble(config["lr_multiplier"])
        gain = np.longdouble(config["lr_multiplier"]) / np.sqrt(np.longdouble(weight.shape[1] * K))
        for tap in range(K):
            position = k + tap - K // 2 if aware else k + tap
            masked = aware and (tap >= (K + 1) // 2 or position < 0)  # future taps; anchors before 0 are zero
            if not masked:
                total = total + (weight[:, :, tap] * gain) @ rows(position)
        return np.where(total < 0, np.longdouble(0.2) * total, total)

    return layer(1, functools.cache(lambda k: layer(0, noise, k)), anchor)


def reference_time_code(t: float, tensors: dict[str, np.ndarray], config: dict[str, Any], seed: int) -> np.ndarray:
    """v_t: every angle as f * p * tau + phi, nothing reduced, longdouble."""
    d, U = config["anchor_distance"], config["code_dim"]
    anchor = math.floor(t / d)
    left, right = (reference_code(k, tensors, config, seed) for k in (anchor, anchor + 1))
    real = {name: array.astype(np.longdouble) / np.sqrt(np.longdouble(U)) for name, array in tensors.items()}
    f = tensors["frequencies"].astype(np.longdouble)
    pi = np.longdouble("3.14159265358979323846264338327950288")
    p = np.tanh(real["period.weight"] @ left) + 1
    phi = (real["phase.weight"] @ left) * config["max_period"] * f / (2 * pi)

    def e(tau: np.longdouble) -> np.ndarray:
        angle = f * p * tau + phi
        return np.concatenate([np.sin(angle), np.cos(angle)])

    t_left, t_right = np.longdouble(anchor * d), np.longdouble((anchor + 1) * d)
    alpha = (np.longdouble(t) - t_left) / d
    aligned = (1 - alpha) * (real["aligner.weight"] @ left) + alpha * (real["aligner.weight"] @ right)
    return e(np.longdouble(t)) - ((1 - alpha) * e(t_left) + alpha * e(t_right)) + aligned
