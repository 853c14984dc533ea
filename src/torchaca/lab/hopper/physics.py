"""The hopper of the DeepMind Control Suite (Tassa et al., 2018), falling without control, stepped by MuJoCo."""

from __future__ import annotations

from importlib import import_module, util
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..experiment import UsageError

RECIPE: dict[str, Any] = {
    "model": "dm_control suite hopper",
    "engine": "mujoco",
    "control": "none",
    "seed": 123,
    "qpos[:2]": [0.0, 0.5],
    "qpos[2:]": [-2.0, 2.0],
    "qvel": [-5.0, 5.0],
    "physics_step": 0.005,
    "sequences": 10_000,
    "steps": 200,
    "dimensions": 14,
    "dtype": "float32",
}
"""How the data are made: uniform initial states, one physics step for each sample, the initial state first."""

PIP = 'pip install "torchaca[mujoco]"'


def generate(sequences: int) -> NDArray[np.float32]:
    """The first trajectories of the recipe, `(sequences, 200, 14)`: 7 positions and 7 velocities.

    Raises
    ------
    UsageError
        Where MuJoCo or the Control Suite is missing: names the pip command.
    """
    mujoco = engine()
    model = mujoco.MjModel.from_xml_string(*_model_and_assets())
    model.opt.timestep = RECIPE["physics_step"]
    data = mujoco.MjData(model)
    draw = np.random.RandomState(RECIPE["seed"])
    found = np.empty((sequences, RECIPE["steps"], RECIPE["dimensions"]))
    for sequence in found:
        mujoco.mj_resetData(model, data)
        mujoco.mj_forward(model, data)
        data.qpos[:2] = draw.uniform(*RECIPE["qpos[:2]"], size=2)
        data.qpos[2:] = draw.uniform(*RECIPE["qpos[2:]"], size=model.nq - 2)
        data.qvel[:] = draw.uniform(*RECIPE["qvel"], size=model.nv)
        mujoco.mj_forward(model, data)
        for point in sequence:
            point[: model.nq], point[model.nq :] = data.qpos, data.qvel
            mujoco.mj_step(model, data)
    return found.astype(np.float32)


def engine() -> ModuleType:
    """The physics engine.

    Raises
    ------
    UsageError
        Where it, or the package with the hopper's model, is not installed.
    """
    for package in ("mujoco", "dm_control"):
        if util.find_spec(package) is None:
            raise UsageError(
                f"the hopper data need {package} to be generated: {PIP}, or give a file with --data PATH"
            )
    return import_module("mujoco")


def _model_and_assets() -> tuple[str, dict[str, bytes]]:
    """The hopper's model and the files that it includes; importing the suite itself would start OpenGL."""
    spec = util.find_spec("dm_control")
    assert spec is not None  # `engine` has looked
    suite = Path((spec.submodule_search_locations or [""])[0]) / "suite"
    common = suite / "common"
    assets = {f"./common/{file.name}": file.read_bytes() for file in sorted(common.glob("*.xml"))}
    return (suite / "hopper.xml").read_text(), assets
