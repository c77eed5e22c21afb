"""What a compiler sees of the operators on a GPU, traced on tensors that have no memory: the launches that a synthesis
network makes, and that each kernel is known to write its results alone (what else it were thought to write would be
copied before every launch)."""

import pytest
import torch
from torch._higher_order_ops.triton_kernel_wrap import kernel_side_table
from torch._subclasses import FakeTensorMode
from torch._subclasses.functional_tensor import dispatch_functionalize
from torch.func import functional_call
from torch.fx.experimental.proxy_tensor import make_fx
from triton.backends.compiler import GPUTarget
from triton.runtime import driver

from styleinv.export.fused_synthesis import FusedSynthesis
from styleinv.kernels import ops
from styleinv.kernels.plan import Network, fused_calls
from styleinv.kernels.tiles import OPERATORS, tile_for
from styleinv.training.generator import SynthesisNetwork

RESULTS = {
    "convolution_kernel": {"out", "image", "frame"},
    "filter_kernel": {"out"},
    "to_rgb_kernel": {"image", "frame"},
    "chunk_statistics_kernel": {"means", "deviations"},
    "adain_lrelu_kernel": {"out"},
    "styles_kernel": {"styles"},
    "demodulation_kernel": {"normalized", "demodulation"},
}


@pytest.fixture
def gpu(monkeypatch):
    """A driver that says what the GPU is, which is all that tracing asks for."""

    class Driver:
        def get_current_target(self):
            return GPUTarget("cuda", 89, 32)

    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "default")
    monkeypatch.setattr(driver, "_active", Driver())
    # The one of torch's own asks the GPU's library.
    monkeypatch.setattr(torch.Tensor, "contiguous", lambda x: x.clone(memory_format=torch.contiguous_format))


def launches_of(function, *inputs):
    """The kernels that a function launches: name, what each is given, what it is seen to write, grid and warps."""
    launches = []
    for node in make_fx(dispatch_functionalize(function))(*inputs).graph.nodes:
        if "triton_kernel_wrapper" in str(node.target):
            autotuner = kernel_side_table.get_kernel(node.kwargs["kernel_idx"])
            (config,) = autotuner.configs
            given = {
                **kernel_side_table.get_constant_args(node.kwargs["constant_args_idx"]),
                **node.kwargs["kwargs"],
            }
            written = set(node.kwargs["tensors_to_clone"])
            given = {argument: value for argument, value in given.items() if value is not None}
            launches.append((autotuner.fn.__name__, given, written, node.kwargs["grid"][0], config.num_warps))
    return launches


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32])
def test_a_network_launches_the_kernels_of_its_plan(dtype, gpu):
    network = Network(64, channel_base=4096, channel_max=96, w_dim=12, dtype=dtype)
    fused = FusedSynthesis(SynthesisNetwork(64, 12, 4096, 96, conv_clamp=256.0), "const", dtype)
    with torch.no_grad(), FakeTensorMode(allow_non_fake_inputs=True), torch.device("cuda"):
        arrays = {name: torch.empty(array.shape, dtype=array.dtype) for name, array in fused.state_dict().items()}
        launches = launches_of(lambda arrays, w: functional_call(fused, arrays, (w,)), arrays, torch.empty(3, 12))
    (first, *_), (second, *_), *rest = launches
    assert (first, second) == ("styles_kernel", "demodulation_kernel")
    planned = [call for call in fused_calls(network)[1:] if call.table in OPERATORS]
    assert len(rest) == len(planned)
    for (name, given, _, grid, warps), call in zip(rest, planned, strict=True):
        _, outputs, height, width = call.layer
        tile = tile_for(call.table, dtype, call.layer)
        assert warps == tile.warps and grid[1 if name == "to_rgb_kernel" else 2] == 3
        assert ("style" in given) == call.styled and ("next_style" in given) == call.next_styled
        if name == "convolution_kernel":
            sizes = given["INPUTS"], given["OUTPUTS"], given["height"], given["width"]
            assert sizes == call.layer
            phases = 4 if call.operator.endswith("up2") else 1
            tiles = -(-height // tile.rows) * -(-width // tile.columns)
            assert grid[:2] == (phases * tiles, -(-outputs // tile.outputs))
    for name, given, written, *_ in launches:
        assert written == RESULTS[name] & given.keys()


def test_float64_is_for_cpus_alone():
    with torch.no_grad(), FakeTensorMode(), torch.device("cuda"):
        x, gamma_beta = torch.empty(1, 4, 4, 3, dtype=torch.float64), torch.empty(1, 6)
        with pytest.raises(ValueError, match=r"x: found torch\.float64, expected one of torch\.float16, .*32$"):
            ops.adain_lrelu(x, gamma_beta)


def test_adain_writes_its_results_alone(gpu):
    with torch.no_grad(), FakeTensorMode(), torch.device("cuda"):
        x, gamma_beta = torch.empty(2, 32, 32, 48), torch.empty(2, 96)
        launches = launches_of(ops.adain_lrelu, x, gamma_beta)
    assert [name for name, *_ in launches] == ["chunk_statistics_kernel", "adain_lrelu_kernel"]
    for name, _, written, grid, _ in launches:
        assert written == RESULTS[name] and grid == (8, 2, 2)
