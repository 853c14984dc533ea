"""What other libraries call the options of a solve, and what they are called here."""

from __future__ import annotations

from collections.abc import Iterable

from .errors import did_you_mean

BACKWARD = "gradient=Adjoint(rtol=..., atol=..., method=..., norm=...)"
EVENTS = (
    "events=, e.g. events=torchaca.Event(g, terminal=True), which ends the solve where g(t, y) crosses zero"
)
CONTROL = "control=Adaptive(safety=..., factor_max=..., factor_min=..., pid=...)"
FIXED = (
    "dt= (the size of fixed steps; n_steps= and grid= are other ways), or dt0= (the first of adaptive ones)"
)
TIMES = "t=, the times of the outputs, of which the first is where y0 holds"
GRADIENT = "gradient=, e.g. 'aca', 'direct', 'adjoint' or an object with settings such as Adjoint(rtol=1e-8)"
METHOD = "method=, a name in torchaca.METHODS or a method"
INPUTS = "nothing: every tensor that f uses gets its gradient"

NAMES = {
    # torchdiffeq
    "step_size": FIXED,
    "options": "each option as an argument of its own: dt=, dt0=, dt_max=, max_steps=, jump_ts=, norm=",
    "first_step": "dt0=",
    "min_step": "dt_min=",
    "max_step": "dt_max= (the number of trials is max_steps=)",
    "max_num_steps": "max_steps=",
    "grid_constructor": "grid=, the times themselves",
    "jump_t": "jump_ts=",
    "step_t": "jump_ts=",
    "perturb": "jump_ts=, which evaluates f on the right side of each",
    "interp": "nothing: outputs between steps are of the method's order",
    "event_fn": EVENTS,
    "adjoint_params": INPUTS,
    "adjoint_rtol": BACKWARD,
    "adjoint_atol": BACKWARD,
    "adjoint_method": BACKWARD,
    "adjoint_options": BACKWARD,
    "safety": CONTROL,
    "ifactor": CONTROL,
    "dfactor": CONTROL,
    "func": "f=",
    # scipy, MATLAB
    "fun": "f=",
    "t_span": "t=, e.g. [t0, t1]",
    "tspan": "t=, e.g. [t0, t1]",
    "t_eval": TIMES,
    "dense_output": "dense=True",
    # torch_ACA
    "h": FIXED,
    "neval_max": "max_steps=",
    "predefine_steps": "grid=",
    "return_steps": "solution.steps",
    "regenerate_graph": GRADIENT,
    # diffrax, torchode, torchdyn, DifferentialEquations.jl
    "t0": "t=[t0, t1]",
    "t1": "t=[t0, t1]",
    "ts": TIMES,
    "saveat": f"{TIMES}; dense=True for any time afterwards",
    "save_at": f"{TIMES}; dense=True for any time afterwards",
    "solver": METHOD,
    "alg": METHOD,
    "step_method": METHOD,
    "stepsize_controller": f"rtol= and atol=, or {CONTROL}",
    "step_size_controller": f"rtol= and atol=, or {CONTROL}",
    "controller": f"rtol= and atol=, or {CONTROL}",
    "adjoint": GRADIENT,
    "sensitivity": GRADIENT,
    "sensealg": GRADIENT,
    "solver_adjoint": BACKWARD,
    "rtol_adjoint": BACKWARD,
    "atol_adjoint": BACKWARD,
    "throw": "on_failure='raise', 'status' or 'nan'",
    "event": EVENTS,
    "discrete_terminating_event": EVENTS,
    "terminating_event": EVENTS,
    "callback": EVENTS,
    "tstops": "jump_ts=",
    "d_discontinuities": "jump_ts=",
    "reltol": "rtol=",
    "abstol": "atol=",
    "dtmin": "dt_min=",
    "dtmax": "dt_max=",
    "maxiters": "max_steps=",
    "num_steps": "n_steps=",
    "parameters": INPUTS,
    "params": INPUTS,
    "p": "args=(p,)",
    # settings of our own gradient methods
    "checkpoints": "gradient=ACA(checkpoints=...)",
    "memory_budget": "gradient=ACA(memory_budget=...)",
    "stagewise": "gradient=ACA(stagewise=True)",
    "grad_rtol": "gradient=ACA(grad_rtol=...)",
    "pid": "control=Adaptive(pid=...)",
    "factor_max": CONTROL,
    "factor_min": CONTROL,
}
"""Names that others use, and what does their work here. None of them is an option of `solve`."""


def answer(name: str, known: Iterable[str]) -> str:
    """What to write instead of an unknown option: the end of a message."""
    ours = NAMES.get(name.lower())
    return f" Here that is {ours}." if ours else did_you_mean(name, known)
