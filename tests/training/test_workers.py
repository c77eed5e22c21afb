"""Several processes on one batch do what one does: the same gradients, losses and statistics, and one set of files."""

import socket

import pytest
import shared_batch
import torch
from forked import finish, start

from styleinv.runtime.errors import ConfigError
from styleinv.training import workers
from styleinv.training.config import with_overrides
from styleinv.training.discriminator import minibatch_deviation

TOLERANCE = 1e-5  # of a gradient's maximum
ROUNDING = 1e-7  # of the maximum in a network


@pytest.fixture(scope="module")
def config(small_config):
    return with_overrides(small_config, shared_batch.SETTINGS)


@pytest.fixture(scope="module")
def whole(config, small_clips):
    """What each stage does with a whole batch in one process."""
    return {name: shared_batch.gradients_of_a_step(name, config, small_clips) for name in shared_batch.STAGES}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("two processes")


@pytest.fixture(scope="module")
def both(config, small_clips, folder):
    """What came out of two processes that shared everything, by rank."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    finish(*(start(shared_batch.share, folder, rank, port, config, small_clips) for rank in range(2)))
    return [torch.load(folder / f"{rank}.pt", weights_only=True) for rank in range(2)]


def worst(found, wanted):
    """The largest difference of a gradient, relative to its maximum, and its name.

    Gradients that are nothing but rounding, as that of a bias before a normalisation, count by their network's maximum.
    """
    assert found.keys() == wanted.keys() and wanted
    largest, differences = {}, []
    for name, gradient in wanted.items():
        network = name.split(".")[0]
        largest[network] = max(largest.get(network, 0.0), gradient.abs().max().item())
    assert min(largest.values()) > 0
    for name, gradient in wanted.items():
        maximum, network = gradient.abs().max().item(), largest[name.split(".")[0]]
        scale = maximum if maximum > ROUNDING * network else network
        differences.append(((found[name] - gradient).abs().max().item() / scale, name))
    return max(differences)


def assert_same_step(found, wanted):
    difference, name = worst(found["gradients"], wanted["gradients"])
    assert difference <= TOLERANCE, f"gradient of {name}: {difference:.2e} of its maximum off"
    assert found["losses"] == pytest.approx(wanted["losses"], rel=1e-4)
    for name, buffer in wanted["buffers"].items():
        torch.testing.assert_close(found["buffers"][name], buffer, rtol=1e-4, atol=1e-5, msg=lambda _, name=name: name)


@pytest.mark.parametrize("name", shared_batch.STAGES)
def test_two_processes_reduce_to_the_gradients_of_one(name, whole, both):
    assert_same_step(both[0][name], whole[name])
    for key, gradient in both[0][name]["gradients"].items():
        assert torch.equal(both[1][name]["gradients"][key], gradient), key
    assert both[1][name]["losses"] == both[0][name]["losses"]


def test_the_steps_had_everything_in_them(whole):
    assert {"r1", "path_length"} <= whole["image"]["losses"].keys()
    assert {"r1", "pairs"} <= whole["pairs"]["losses"].keys()
    assert {"r1", "first_frame", "drift"} <= whole["motion"]["losses"].keys()
    assert {"r1", "perceptual"} <= whole["transfer"]["losses"].keys()
    for name in ("image", "pairs", "motion", "transfer"):
        assert 0 < whole[name]["losses"]["augment"] != 0.5  # what moves it is the sign of all real logits
    steps = {key.split()[0] for key in whole["image"]["gradients"]}
    assert steps == {"0", "1", "2"}  # discriminator, generator, path lengths
    assert all(
        whole["image"]["gradients"][f"{step} generator.synthesis.blocks.2.convs.0.noise_strength"] != 0
        for step in (1, 2)
    )
    assert whole["image"]["buffers"]["generator.mapping.latent_average"].abs().max() > 0


# Not the inversion stage: in one process each part is normalised by its own statistics, as they are all it has.
@pytest.mark.parametrize("name", ["image", "pairs", "motion", "transfer"])
def test_parts_in_one_process_add_up_to_the_whole_batch(name, whole, config, small_clips):
    parts = with_overrides(config, ["compute.accumulation=2"])
    assert_same_step(shared_batch.gradients_of_a_step(name, parts, small_clips), whole[name])


def test_contiguous_rows_would_be_noticed(whole, config, small_clips, monkeypatch):
    """The test above fails where parts are not whole groups of the minibatch deviation."""
    monkeypatch.setattr(workers, "own_parts", lambda batch, *_: list(torch.arange(batch).chunk(2)))
    found = shared_batch.gradients_of_a_step("image", config, small_clips)
    assert worst(found["gradients"], whole["image"]["gradients"])[0] > 100 * TOLERANCE


def test_batch_norms_see_the_whole_batch(both):
    whole = shared_batch.batch_norm_of(torch.arange(6))
    torch.manual_seed(2)
    x = torch.randn(6, 5, 4, 3) * 3 + 1
    assert torch.allclose(whole["all"]["running_mean"], 0.3 * x.mean(dim=(0, 2, 3)), atol=1e-6)
    assert torch.allclose(whole["all"]["running_var"], 0.7 + 0.3 * x.var(dim=(0, 2, 3)), atol=1e-5)
    for rank, found in enumerate(result["batch norm"] for result in both):
        assert found["type"] == "SharedBatchNorm2d"
        for name, tensor in found["rows"].items():
            torch.testing.assert_close(tensor, whole["rows"][name][rank::2], rtol=1e-5, atol=2e-5)
        for name, tensor in found["all"].items():
            torch.testing.assert_close(tensor, whole["all"][name], rtol=1e-5, atol=1e-4)
    alone = torch.nn.functional.batch_norm(x[::2], None, None, training=True)
    assert not torch.allclose(whole["rows"]["y"][::2], alone, atol=0.1)


def test_processes_know_their_places_and_meet(both):
    assert [result["place"] for result in both] == [(0, 2), (1, 2)]
    assert [result["sum"] for result in both] == [3.0, 3.0]
    assert [result["flags"] for result in both] == [(True, False)] * 2
    assert [result["afterwards"] for result in both] == [(0, 1)] * 2
    assert (workers.rank(), workers.count()) == (0, 1)


def test_ctrl_c_in_one_process_ends_all_and_the_first_one_writes(both, folder):
    assert [result["interrupted"] for result in both] == [True, True]
    assert torch.load(folder / "run0" / "inversion.state.pt", weights_only=True)["images"] == 2 * 4
    assert (folder / "run0" / "inversion.safetensors").is_file() and (folder / "run0" / "logs").is_dir()
    assert not (folder / "run1").exists()


@pytest.fixture
def parts_of_all(monkeypatch):
    """The parts of every process, one process after another."""

    def parts(batch, processes, accumulation, group_size):
        monkeypatch.setattr(workers, "count", lambda: processes)
        found = []
        for rank in range(processes):
            monkeypatch.setattr(workers, "rank", lambda rank=rank: rank)
            found += workers.own_parts(batch, accumulation, group_size)
        return found

    return parts


@pytest.mark.parametrize(
    ("batch", "processes", "accumulation", "group_size"),
    [(8, 2, 1, 4), (16, 2, 2, 4), (12, 3, 1, 8), (24, 1, 4, 3), (8, 4, 1, 1), (6, 1, 1, 8), (4, 2, 2, 1)],
)
def test_parts_keep_the_groups_of_the_minibatch_deviation(parts_of_all, batch, processes, accumulation, group_size):
    parts = parts_of_all(batch, processes, accumulation, group_size)
    assert len(parts) == processes * accumulation
    assert sorted(torch.cat(parts).tolist()) == list(range(batch))
    x = torch.randn(batch, 2, 3, 3)
    deviation = minibatch_deviation(x, group_size)
    for rows in parts:
        assert torch.equal(minibatch_deviation(x[rows], group_size), deviation[rows])
    if len(parts[0]) % 2 == 0:  # what is regularised for path lengths
        assert {row for rows in parts for row in rows[: len(rows) // 2].tolist()} == set(range(batch // 2))


@pytest.mark.parametrize(
    ("batch", "processes", "accumulation", "group_size", "words"),
    [
        (8, 2, 1, 8, r"batch: found 8 samples in 1 groups of 8.*2 processes times compute\.accumulation 1"),
        (8, 3, 1, 2, r"batch: found 8 samples in 4 groups of 2.*3 processes times compute\.accumulation 1"),
        (4, 1, 8, 1, r"batch: found 4 samples in 4 groups of 1.*1 processes times compute\.accumulation 8"),
        (8, 2, 1, 6, r"group_size: found 6, which makes groups of 2 .* 2 parts of 4; expected 2"),
    ],
)
def test_groups_that_cannot_be_shared_out(parts_of_all, batch, processes, accumulation, group_size, words):
    with pytest.raises(ConfigError, match=words):
        parts_of_all(batch, processes, accumulation, group_size)
