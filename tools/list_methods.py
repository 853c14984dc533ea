"""Write docs/methods.md, the table of all methods, and their entries in docs/api/methods.md.

python tools/list_methods.py
"""

from __future__ import annotations

from pathlib import Path

import torch

import torchaca
from torchaca.core import Method
from torchaca.methods import ALIASES, CONSTRUCTORS, METHODS, RungeKutta

DOCS = Path(__file__).resolve().parents[1] / "docs"
PAGE, REFERENCE = DOCS / "methods.md", DOCS / "api" / "methods.md"
HEAD = """# Methods

Each name is one for `method=`, in `solve`, `NeuralODE` and `odeint` alike; the object in the last column is the same
method. `odeint(method="rk4")` is torchdiffeq's, the 3/8 rule.

* Order: halving the step divides the error by two to this power. Outputs between steps have the same order.
* Adaptive methods estimate their error and choose their steps by it; given `n_steps=`, `dt=` or `grid=`, every method
  takes fixed ones.
* Evaluations: calls of f in each step but the first, measured.

A method of your own goes wherever a name goes: see [Adding a method](adding-a-method.md).
`tools/list_methods.py` writes this page.

| `method=` | other names | order | adaptive | evaluations a step | `torchaca.` |
|---|---|---|---|---|---|
"""


REFERENCE_HEAD = """# Methods

What `method=` takes. Guides: [Choosing a solver](../solvers.md), [adding a method](../adding-a-method.md).

::: torchaca.METHODS

::: torchaca.ALF
    options:
      members: false

::: torchaca.ReversibleHeun
    options:
      members: false

::: torchaca.RungeKutta
    options:
      members: false
"""


def reference() -> str:
    """The page of the reference. The functions are made from METHODS, where the site's generator cannot see them."""
    written = ""
    for (name, method), constructor in zip(METHODS.items(), CONSTRUCTORS, strict=True):
        if isinstance(method, RungeKutta):
            written += f"\n## torchaca.{constructor}\n\n"
            written += f'`torchaca.{constructor}()` is the method `"{name}"`, of order {method.order}.\n'
    return REFERENCE_HEAD + written


def page() -> str:
    """The page as METHODS and ALIASES have it."""
    rows = (
        (
            f"`{name}`",
            ", ".join(f"`{alias}`" for alias, own in ALIASES.items() if own is method),
            str(method.order),
            "yes" if method.adaptive else "",
            str(evaluations(method, 4) - evaluations(method, 3)),
            f"`{constructor}()`",
        )
        for (name, method), constructor in zip(METHODS.items(), CONSTRUCTORS, strict=True)
    )
    return HEAD + "".join(f"| {' | '.join(row)} |\n" for row in rows)


def evaluations(method: Method, n: int) -> int:
    """How many times a solve of `n` steps evaluates f."""
    return torchaca.solve(lambda t, y: -y, torch.ones(1), [0.0, 1.0], method=method, n_steps=n).stats.nfe


if __name__ == "__main__":
    PAGE.write_text(page())
    REFERENCE.write_text(reference())
