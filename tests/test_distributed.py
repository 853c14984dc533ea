"""Two processes with half of the data each, and another number of evaluations each, under DDP and FSDP2."""

import pytest
import torch
from distributed_cases import CASES, FIXED, INSIDE, SHARDED, TIGHT, data, gradients, loss, model, work
from gradient_cases import ALL, CONTINUOUS, assert_same
from ranks import RANKS, found_by_ranks, needs_gloo

pytestmark = needs_gloo
KEEPS_GRAPH = {"direct", "naive", "none"}


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    """What each rank found in each case."""
    return found_by_ranks(work, tmp_path_factory.mktemp("ranks"), "spawn")


def alone(**options):
    """One process: the mean of what the ranks would find, each on its own grid."""
    net = model(**options)
    for part in data().chunk(RANKS):
        (loss(net, part) / RANKS).backward()
    return gradients(net)


@pytest.mark.parametrize("case", [*CASES, *SHARDED])
def test_gradients_are_those_of_one_process(results, case):
    name = case.split()[-1]
    gradient = name if name in ALL else "aca"
    want = alone(gradient=gradient, **TIGHT)
    # Halves of a rank's share have grids of their own, and a backward integration looks at unused parameters as well.
    tolerance = 1e-7 if case == "ddp accumulates" or gradient in CONTINUOUS else 1e-11
    for rank in results:
        found = rank[case]["grads"]
        got = {
            name: torch.zeros_like(g) if found[name] is None else found[name]
            for name, g in want.items()
            if g is not None
        }
        assert_same(got, {name: want[name] for name in got}, tolerance)
        assert found["block.f.frozen"] is None


@pytest.mark.parametrize("case", [*CASES, *SHARDED])
def test_ranks_take_different_numbers_of_evaluations(results, case):
    one, two = (rank[case]["nfe"] for rank in results)
    assert one != two


def test_gradients_of_the_joined_batch(results):
    joined = model(**TIGHT)
    loss(joined, data()).backward()
    want = {name: g for name, g in gradients(joined).items() if g is not None}
    for case in ("ddp aca", "fsdp aca", "ddp accumulates"):
        assert_same({name: results[0][case]["grads"][name] for name in want}, want, 1e-6)


def test_hooks_see_a_whole_gradient_once(results):
    for rank, part in zip(results, data().chunk(RANKS), strict=True):
        net = model(**TIGHT)
        loss(net, part).backward()
        (seen,) = rank["ddp hooks"]["seen"]
        torch.testing.assert_close(seen, net.block.f.scale.grad, rtol=1e-11, atol=0)
        assert rank["ddp hooks"]["buckets"] == 1


@pytest.mark.parametrize("name", INSIDE)
def test_sharding_inside_of_f(results, name):
    """Right where it can be, refused where it would deadlock or lose the gradient; never a hang."""
    for rank in results:
        assert "deadlock" in rank[f"{name} adaptive"]["refused"]
        assert "fully_shard(NeuralODE(f))" in rank[f"{name} adaptive"]["refused"]
        fixed = rank[f"{name} fixed"]
        if name.split()[1] in KEEPS_GRAPH:
            want = {n: g for n, g in alone(**FIXED).items() if g is not None and n.startswith("block")}
            assert_same({n: fixed["grads"][n] for n in want}, want, 1e-11)
        else:
            assert "f.net.0.bias" in fixed["refused"]
            assert "gradient='direct'" in fixed["refused"]


def test_sharding_inside_of_f_without_grad(results):
    for rank in results:
        assert "deadlock" in rank["inside no-grad"]["refused"]
