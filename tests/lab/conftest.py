import lab_helpers
import page_cases
import pytest
import torch

from torchaca.lab import conv_reconstruct, cost, three_body, toy, van_der_pol


@pytest.fixture(autouse=True)
def keep_threads():
    """The command sets the number of threads for its process, which here is the tests' own."""
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)


@pytest.fixture
def small(monkeypatch):
    """The experiments in sizes that end in a second; their plots are empty files."""
    monkeypatch.setattr(three_body, "EXPERIMENT", lab_helpers.small_three_body())
    monkeypatch.setattr(toy, "EXPERIMENT", lab_helpers.small_toy())
    monkeypatch.setattr(van_der_pol, "EXPERIMENT", lab_helpers.small_van_der_pol())
    monkeypatch.setattr(cost, "EXPERIMENT", lab_helpers.small_cost())
    monkeypatch.setattr(conv_reconstruct, "EXPERIMENT", lab_helpers.small_conv_reconstruct())
    for place in (
        "cost.outcome.plot_counts",
        "conv_reconstruct.outcome.plot_images",
        "conv_reconstruct.outcome.plot_errors",
        "toy.outcome.plot",
        "three_body.outcome.plot_motion",
        "three_body.outcome.plot_losses",
        "three_body.outcome.animate",
        "van_der_pol.outcome.plot_trajectories",
        "van_der_pol.outcome.plot_gradients",
    ):
        monkeypatch.setattr(f"torchaca.lab.{place}", lambda *args: args[-1].touch())


@pytest.fixture
def finished(tmp_path, monkeypatch):
    """The folder of a run that came to its end, relative to the current one."""
    monkeypatch.chdir(tmp_path)
    return page_cases.finished()
