"""`torchaca run conv-reconstruct`: images through an ODE that is a convolution, forward and back.

From the slides ("Experiment with an ODE defined by convolution"): the input and what a reverse-time solve makes of
it. Kernel, activation and T are not given there.
"""

from __future__ import annotations

from ..experiment import Experiment
from .flow import Settings, check
from .outcome import main

EXPERIMENT = Experiment(
    name="conv-reconstruct",
    about="CIFAR-10 images through dz/dt = act(conv(z)) to T and back: what is left of them.",
    defaults=Settings(),
    sizes={
        "smoke": {"times": (1.0, 5.0), "seeds": 1, "images": 2},
        "cpu": {},
        "paper": {"images": 50, "seeds": 10},
    },
    main=main,
    check=check,
)
