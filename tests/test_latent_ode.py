"""`LatentODE`: its encoder against the loop of its paper, its bound and its gradients against formulas and rivals."""

import pytest
import torch

import torchaca as aca
from torchaca.nn import LatentODE

DOUBLE = torch.float64
SMALL = {
    "latent": 3,
    "units": 8,
    "layers": 1,
    "state": 4,
    "gru_units": 5,
    "std": 0.5,
    "rtol": 1e-6,
    "atol": 1e-8,
}
B, T, D = 3, 6, 2


def model(**options):
    torch.manual_seed(0)
    made = LatentODE(D, **{**SMALL, **options}).double()
    with torch.no_grad():
        for parameter in made.parameters():
            parameter.mul_(4).add_(0.05)  # initial weights are so small that mistakes would hide
    return made


def data(per_sample=False):
    torch.manual_seed(1)
    values = torch.randn(B, T, D, dtype=DOUBLE)
    times = torch.rand((B, T) if per_sample else T, dtype=DOUBLE).sort(-1).values
    mask = torch.rand(B, T, D) < 0.6
    mask[:, -1], mask[1, 2] = True, False
    return values, times, mask


def encoded_one_by_one(made, values, times, mask, start):
    """The encoder of the paper for one series, point by point: values `(T, D)`, times `(T,)`."""
    e, n, g = made.encoder, made.encoder.size, made.encoder.gru_units
    mean, std = torch.zeros(n, dtype=DOUBLE), torch.zeros(n, dtype=DOUBLE)
    for i in reversed(range(len(times))):
        if i + 1 < len(times):
            mean = mean + (times[i] - times[i + 1]) * e.dynamics(mean)
        if not mask[i].any():
            continue
        x = torch.cat((values[i] * mask[i], mask[i].double()))
        hidden = torch.tanh(e.gates_in(torch.cat((mean, std, x))))
        update, reset = torch.sigmoid(e.update_out(hidden[:g])), torch.sigmoid(e.reset_out(hidden[g:]))
        new = e.new_out(torch.tanh(e.new_in(torch.cat((mean * reset, std * reset, x)))))
        mean = (1 - update) * new[:n] + update * mean
        std = (1 - update) * new[n:].abs() + update * std
    mean = mean + (start - times[0]) * e.dynamics(mean)
    found = e.to_z0(torch.cat((mean, std)))
    return found[: len(found) // 2], found[len(found) // 2 :].abs()


@pytest.mark.parametrize("start", [None, -0.5])
@pytest.mark.parametrize("per_sample", [False, True], ids=["shared times", "own times"])
def test_the_encoder_is_that_of_the_paper(per_sample, start):
    made, (values, times, mask) = model(start=start), data(per_sample)
    mean, std = made.encode(values, times, mask)
    for b in range(B):
        own = times[b] if per_sample else times
        one = encoded_one_by_one(made, values[b], own, mask[b], times.min() if start is None else start)
        torch.testing.assert_close((mean[b], std[b]), one)


def test_what_is_not_observed_has_no_influence():
    made, (values, times, mask) = model(), data()
    hidden = torch.where(mask, values, torch.nan)
    torch.testing.assert_close(
        made.encode(hidden, times, mask), made.encode(values, times, mask), rtol=0, atol=0
    )
    loss = made.loss(hidden, times, mask).loss
    loss.backward()
    assert loss.isfinite()
    assert all(parameter.grad.isfinite().all() for parameter in made.parameters())


def test_own_times_equal_shared_ones():
    made, (values, times, mask) = model(steps="joint"), data()
    options = {"at": torch.linspace(float(times[0]), 2, 5, dtype=DOUBLE), "samples": 2}
    torch.manual_seed(2)
    shared = made(values, times, mask, **options)
    torch.manual_seed(2)
    own = made(values, times.expand(B, T), mask, at=options["at"].expand(B, 5), samples=2)
    assert shared.shape == (2, B, 5, D)
    torch.testing.assert_close(own, shared)


def test_each_series_is_read_at_its_own_times():
    made, (values, times, mask) = model(), data(per_sample=True)
    torch.manual_seed(2)
    together = made(values, times, mask)
    union = times.flatten().sort().values
    torch.manual_seed(2)
    everywhere = made(values, times, mask, at=union)
    for b in range(B):
        place = torch.searchsorted(union, times[b])
        torch.testing.assert_close(together[0, b], everywhere[0, b, place])


def test_the_bound():
    """From the predictions themselves, by torch.distributions."""
    values, times, mask = data()
    terms = {}
    for objective in ("iwae", "elbo"):
        made = model(objective=objective)
        torch.manual_seed(3)
        found = made.loss(values, times, mask, samples=4, kl_weight=0.3)
        torch.manual_seed(3)
        predicted = made(values, times, mask, samples=4)
        density = torch.distributions.Normal(predicted, SMALL["std"]).log_prob(values)
        known = mask.double()
        per_feature = (density * known).sum(2) / known.sum(1)
        log_likelihood = per_feature.mean((1, 2))
        normal = torch.distributions.Normal
        posterior = normal(*made.encode(values, times, mask))
        kl = torch.distributions.kl_divergence(posterior, normal(0.0, 1.0)).mean()
        terms = log_likelihood - 0.3 * kl
        bound = terms.mean() if objective == "elbo" else terms.exp().mean().log()
        torch.testing.assert_close(found.loss, -bound, rtol=1e-6, atol=1e-6)
        torch.testing.assert_close(found.log_likelihood, log_likelihood.mean().detach(), rtol=1e-6, atol=1e-6)
        torch.testing.assert_close(found.kl, kl.detach(), rtol=1e-6, atol=1e-6)
        error = ((predicted - values).square() * known).sum(2) / known.sum(1)
        torch.testing.assert_close(found.mse, error.mean().detach())


@pytest.mark.parametrize("gradient", ["direct", "naive", "adjoint"])
def test_gradients_agree(gradient):
    values, times, mask = data()

    def found(name):
        made = model(gradient=name, rtol=1e-9, atol=1e-9)
        torch.manual_seed(4)
        made.loss(values, times, mask, samples=2).loss.backward()
        return torch.cat([parameter.grad.flatten() for parameter in made.parameters()])

    tolerance = 1e-5 if gradient == "adjoint" else 1e-9
    torch.testing.assert_close(found(gradient), found("aca"), rtol=tolerance, atol=tolerance)


def test_outputs_cost_no_evaluations():
    made, (values, times, mask) = model(), data()
    counts = []
    for number in (2, 200):
        found = made(values, times, mask, at=torch.linspace(float(times[0]), 1, number, dtype=DOUBLE))
        found.sum().backward()
        counts.append((made.stats.nfe, made.stats.nfe_backward))
    (few, few_backward), (many, many_backward) = counts
    assert many == few
    assert many_backward <= few_backward + 1  # the slope at t1, which an output inside the last step needs


@pytest.mark.parametrize(
    ("change", "error", "said"),
    [
        (
            {"values": torch.full((B, T, D), torch.nan)},
            ValueError,
            r"values\[0, 0, 0\] is nan .*36 such values.*mask",
        ),
        ({"values": torch.zeros(B, T, D + 1)}, ValueError, r"\(batch, times, 2\) is needed"),
        ({"values": torch.zeros(B, T, D, dtype=torch.int64)}, TypeError, "not torch.int64"),
        ({"times": torch.zeros(T + 1)}, ValueError, r"have shape \(7,\): \(6,\) or \(3, 6\) is needed"),
        ({"times": torch.tensor([0.0, 1, 3, 2, 4, 5])}, ValueError, "decrease after index 2: sort"),
        ({"times": torch.full((T,), torch.inf)}, ValueError, "have a nan or inf"),
        ({"mask": torch.ones(B, T)}, ValueError, r"the mask of values has shape \(3, 6\)"),
        ({"mask": torch.zeros(B, T, D)}, ValueError, "no observed value"),
        ({"at": torch.tensor([-1.0])}, ValueError, "before that of z0, 0: give `start`"),
        ({"target_mask": torch.ones(B, T, D)}, ValueError, "no effect without targets"),
        ({"targets": torch.full((B, T, D), torch.nan)}, ValueError, r"targets\[0, 0, 0\] is nan"),
    ],
)
def test_refusals(change, error, said):
    torch.manual_seed(0)
    made = LatentODE(D, **SMALL)
    given = {"values": torch.zeros(B, T, D), "times": torch.linspace(0, 1, T), **change}
    with pytest.raises(error, match=said):
        (made if "at" in given else made.loss)(**given)


def test_options_are_checked():
    with pytest.raises(TypeError, match="LatentODE has no option 'unit'"):
        LatentODE(2, unit=3)
    with pytest.raises(ValueError, match="'iwae' or 'elbo'"):
        LatentODE(2, objective="vae")
    with pytest.raises(ValueError, match="std is 0"):
        LatentODE(2, std=0)
    values, times, mask = data()
    with pytest.raises(ValueError, match="is before `start`, 3"):
        model(start=3.0).encode(values, times, mask)


def test_it_learns():
    """Two kinds of exponentials: half of their points are enough to tell them apart."""
    torch.manual_seed(0)
    times = torch.linspace(0, 1, 12)
    rate = torch.tensor([1.0, -1.0]).repeat(8)
    x = torch.exp(rate[:, None] * times)[..., None]
    made = LatentODE(1, **{**SMALL, "std": 0.1, "rtol": 1e-3, "atol": 1e-4})
    optimizer = torch.optim.Adam(made.parameters(), lr=3e-2)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 200)
    for _ in range(200):
        mask = (torch.rand(16, 12, 1) < 0.5).index_fill(1, torch.tensor([0]), True)
        optimizer.zero_grad()
        found = made.loss(x, times, mask, targets=x, kl_weight=0.01)
        found.loss.backward()
        optimizer.step()
        schedule.step()
    assert found.mse < 0.1 * x.var()
    assert isinstance(made.stats, aca.Stats)


# --- steps of each series ---


FINE = {"rtol": 1e-9, "atol": 1e-10}
FIXED = {"rtol": None, "atol": None, "method": "rk4", "n_steps": 40}


@pytest.mark.parametrize("options", [FINE, {**FINE, "compile": True}, FIXED], ids=["", "compiled", "fixed"])
def test_own_steps_give_what_joint_ones_give(options):
    values, times, mask = data(per_sample=True)
    found = []
    for steps in ("own", "joint"):
        made = model(steps=steps, **options)
        torch.manual_seed(3)
        loss = made.loss(values, times, mask, samples=2).loss
        found.append([loss.detach(), *torch.autograd.grad(loss, [*made.parameters()])])
    torch.testing.assert_close(*found, rtol=1e-4, atol=1e-6)


def test_a_series_does_not_notice_the_others():
    made, (values, times, mask) = model(start=-0.5), data(per_sample=True)
    noise = torch.zeros(1, B, made.dynamics[0].in_features, dtype=DOUBLE)

    def predicted(rows):
        observed = values[rows], times[rows], mask[rows]
        mean, _ = made.encode(*observed)
        z0 = (mean + noise[0, : len(mean)])[:, None]
        own = torch.cat((torch.full((len(z0), 1), -0.5, dtype=DOUBLE), times[rows]), 1)
        return made.solved(z0, own, batch=1)

    torch.testing.assert_close(predicted(slice(None))[:, 1:2], predicted(slice(1, 2)), rtol=1e-12, atol=1e-12)


def test_steps_are_own_or_joint():
    with pytest.raises(ValueError, match="steps is 'mine'"):
        model(steps="mine")
