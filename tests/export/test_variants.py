"""Every variant that changes the graphs: stored, loaded, exported, verified and played."""

import numpy as np
import onnx
import onnxruntime
import pytest
import torch

from styleinv.export.graphs import graphs_of
from styleinv.export.references import reference_frames
from styleinv.export.writer import export_bundle
from styleinv.runtime import Bundle, Rollout
from styleinv.training.checkpoint import load_checkpoint, save_checkpoint
from styleinv.training.config import with_overrides
from styleinv.training.initialize import initialize

SMALLEST = [  # an export's time goes with the number of layers
    "model.generator.resolution=8",
    "model.generator.mapping_layers=2",
    "model.encoder.depths=[1,1]",
    "discriminator.join_resolution=8",
]
VARIANTS = {
    "convolution": [  # with offsets from the average, and styles of their own size
        "model.encoder.modulation=convolution",
        "model.encoder.temporal_blocks=bottleneck",
        "model.input_residual=false",
        "model.motion.style_dim=7",
    ],
    "pca": [  # with a motion that is not aware of the first frame
        "model.encoder.pca_components=4",
        "model.encoder.lr_multiplier=0.1",
        "model.motion.first_frame_aware=false",
        "model.motion.kernel_size=4",
        "model.motion.min_period=64",
        "model.motion.max_period=16",
    ],
    "skip_encoder": [  # with tensors that no graph needs
        "model.skip_encoder=true",
        "model.stores_latent_average=true",
        "model.recovered_motion_dim=3",
    ],
    "even_kernel": [  # with classes
        "model.motion.kernel_size=4",
        "model.generator.label_dim=3",
        "model.generator.label_embedding_dim=5",
        "model.generator.mapping_dim=20",
    ],
}
TIMES = [0.0, 5.5, 100.25]


@pytest.fixture(params=VARIANTS, scope="module")
def variant(request, small_config, tmp_path_factory):
    """A model, its configuration and its bundle, which export verified."""
    config = with_overrides(small_config, SMALLEST + VARIANTS[request.param])
    model = initialize(config, seed=2)
    folder = tmp_path_factory.mktemp(request.param)
    save_checkpoint(folder / "model.safetensors", model, config)
    export_bundle(load_checkpoint(folder / "model.safetensors"), folder / "model.bundle", progress=False)
    return model, config, folder / "model.bundle"


def test_bundles_of_variants_play_what_pytorch_makes(variant, monkeypatch):
    model, config, bundle = variant
    if config.model.skip_encoder:
        monkeypatch.setattr(Rollout, "first_image", property(lambda rollout: pytest.fail("nothing needs x0")))
    label = 0 if config.model.generator.label_dim else None
    with Rollout.open(bundle, seed=4, label=label) as rollout:
        found = np.stack([rollout[t] for t in TIMES])
        batched = np.stack(list(rollout.frames(TIMES, batch=3)))
    expected = np.stack([*reference_frames(model, "const", 4, TIMES)]).astype(int)
    assert np.abs(found.astype(int) - expected).max() <= 1
    assert np.abs(batched.astype(int) - expected).max() <= 1
    assert len({frame.tobytes() for frame in found}) == len(TIMES)


def test_graphs_of_variants(variant):
    _, config, path = variant
    graphs = Bundle.open(path).manifest["graphs"]
    content = [] if config.model.skip_encoder else ["features", "prepared"]
    assert ("content" in graphs) == bool(content)
    for name in ("latent", "frame"):
        assert sorted(graphs[name]["inputs"]) == [*content, "v", "w0"]
    assert list(graphs["latent"]["outputs"]) == ["w"]
    assert not any("recovery" in tensor.name for tensor in onnx.load(path / "latent.onnx").graph.initializer)


def test_the_temporal_style_can_be_found_in_the_latent_graph(variant):
    model, config, path = variant
    latent = onnx.load(path / "latent.onnx")
    assert [value.name for value in latent.graph.output] == ["w"]
    latent.graph.output.extend(value for value in latent.graph.value_info if value.name == "style")
    session = onnxruntime.InferenceSession(latent.SerializeToString())
    for batch in (1, 3):
        graph = graphs_of(model, config, "const", batch=batch, seed=8)[-1]
        assert (graph.name, graph.outputs, graph.internal) == ("latent", ("w",), ("style",))
        inputs = {name: tensor.numpy() for name, tensor in graph.inputs.items()}
        w, style = session.run(["w", "style"], inputs)
        with torch.no_grad():
            expected_w, expected_style = graph.reference(*graph.inputs.values())
            assert torch.equal(expected_style, model.style(graph.inputs["w0"], graph.inputs["v"]))
        assert style.shape == (batch, config.model.motion.style_dim or 12)
        assert np.abs(style - expected_style.numpy()).max() < 1e-5 * np.abs(style).max()
        assert np.abs(w - expected_w.numpy()).max() < 1e-4 * np.abs(w).max()
