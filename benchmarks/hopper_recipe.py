"""Which recipe of `torchaca run hopper` learns fastest at the paper's size, on sequences that are held out.

    python benchmarks/hopper_recipe.py --data data/hopper.npy [--epochs 8] [--seen 20]
        [--write docs/results/hopper/recipe.md]

The last tenth of the training sequences is held out, and all trials are compared on it; the test sequences are not
read. Each trial has a whole schedule of its own, of so few epochs. What is in the folder `--kept` already is not
trained again.
"""

from __future__ import annotations

import hashlib
import json
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from machine import command_line, described, publish, table

from torchaca.lab.engine import Batches
from torchaca.lab.experiment import plain
from torchaca.lab.hopper.data import Data, prepare, seen, trajectories
from torchaca.lab.hopper.settings import Settings, lr_factor
from torchaca.lab.hopper.train import Fit, optimizers

HELD_OUT = 0.1
BASE: dict[str, Any] = {
    "encode": "seen",
    "train_samples": 1,
    "batch": 100,
    "schedule": "cosine",
    "warm_up": 0.1,
    "matmul": "medium",
    "replay": False,
    "optimizer": "muon",
    "lr": 2e-3,
    "muon_lr": 1e-2,
}
TRIALS: dict[str, dict[str, Any]] = {
    "Muon 0.01, Adam 0.002, batches of 100": {},
    "Muon 0.025": {"muon_lr": 2.5e-2},
    "Adam 0.004": {"lr": 4e-3},
    "Muon 0.025, Adam 0.004": {"muon_lr": 2.5e-2, "lr": 4e-3},
    "Muon 0.05, Adam 0.008": {"muon_lr": 5e-2, "lr": 8e-3},
    "Muon 0.1, Adam 0.016": {"muon_lr": 0.1, "lr": 1.6e-2},
    "Muon 0.05, Adam 0.008, batches of 50": {"muon_lr": 5e-2, "lr": 8e-3, "batch": 50},
    "all weights by Adamax 0.01": {"optimizer": "adamax", "lr": 1e-2},
}
"""What is tried -> how it differs from `BASE`."""


def trial(settings: Settings, data: Data, fraction: float, seed: int = 0) -> dict[str, float]:
    """Train one setting; its errors (x 1e-2), and the processor's time."""
    torch.set_float32_matmul_precision(settings.matmul)
    fit, batches = Fit("aca", settings, data, fraction, seed), Batches(len(data.train), settings.batch, seed)
    made = optimizers(fit.net, settings)
    rates = [
        torch.optim.lr_scheduler.LambdaLR(each, lambda step: lr_factor(settings, step, fit.steps))
        for each in made
    ]
    torch.manual_seed(seed)
    begin, errors, nfe = time.process_time(), [0.0], 0
    for epoch in range(settings.epochs):
        batches.set_epoch(epoch)
        errors = []
        for index in batches:
            x = data.train[index]
            found = fit.loss(x, seen(len(x), x.shape[1], fraction), settings.train_samples)
            found.loss.backward()
            for each in (*made, *rates):
                each.step()
            for each in made:
                each.zero_grad()
            errors.append(found.mse.item())
            nfe = fit.net.stats.nfe
    spent = time.process_time() - begin
    mask = seen(len(data.test), data.test.shape[1], fraction, torch.Generator().manual_seed(1))
    with torch.no_grad():
        held = fit.loss(data.test, mask, settings.samples).mse
    return {
        "training": 100 * sum(errors) / len(errors),
        "held out": 100 * held.item(),
        "s": spent,
        "NFE": nfe,
    }


def kept(folder: Path, settings: Settings, data: Data, fraction: float) -> dict[str, float]:
    """The outcome of a trial, from the folder where it is there."""
    about = json.dumps({**plain(settings), "data": None, "seen": fraction}, sort_keys=True)
    path = folder / f"{hashlib.sha256(about.encode()).hexdigest()[:16]}.json"
    if not path.exists():
        found = trial(settings, data, fraction)
        folder.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(found))
    return json.loads(path.read_text())


def split(path: str) -> Data:
    """The training sequences, the last of them in the place of the test set."""
    size = Settings()
    whole = prepare(trajectories(path), size.sequences, size.window, 0)
    count = int(len(whole.train) * (1 - HELD_OUT))
    return replace(whole, train=whole.train[:count], test=whole.train[count:])


def main() -> None:
    parser = command_line(__doc__, epochs=8, seen=20)
    parser.add_argument("--data", required=True, help="trajectories, as `torchaca run hopper` makes them")
    parser.add_argument("--kept", type=Path, default=Path("runs/hopper-recipe"), help="outcomes of trials")
    args = parser.parse_args()
    torch.set_num_threads(1)
    data, rows = split(args.data), []
    for said, changes in TRIALS.items():
        settings = Settings(epochs=args.epochs, **{**BASE, **changes})
        found = kept(args.kept, settings, data, args.seen / 100)
        print(said, found, flush=True)
        rows.append({"trial": said, **found, "NFE": f"{found['NFE']:g}"})
    command = (
        f"python benchmarks/hopper_recipe.py --data hopper.npy --epochs {args.epochs} --seen {args.seen}"
    )
    page = (
        f"# Hopper: trials of recipes\n\n{described(command)}\n\n"
        f"The latent ODE by aca at the paper's size, {args.seen} % of the points seen, {args.epochs} epochs of "
        f"{len(data.train)} sequences, each with a whole schedule (a cosine to zero after a rise of a tenth of the "
        f"steps, unless it says otherwise). MSE x 1e-2: of the last epoch's training, and of {len(data.test)} "
        "training sequences that are held out; the test set is not read. Seconds are the processor's; NFE is that of "
        "the last minibatch. Each trial differs from the first one in what it says.\n\n"
        f"{table(rows)}\n"
    )
    publish(page, args.write)


if __name__ == "__main__":
    main()
