"""The gradients of docs/adding-a-gradient.md as rows of GRADIENTS: `pytest -p page_gradients` runs a test over them."""

import re
from pathlib import Path
from types import ModuleType
from typing import Any

from torchaca import GRADIENTS

PAGE = Path(__file__).resolve().parents[1] / "docs" / "adding-a-gradient.md"
ROWS = {"page_my_direct": "MyDirect", "page_step_by_step": "StepByStep", "page_halved": "Halved"}


def page_classes() -> dict[str, Any]:
    """The classes that the page defines; what it checks with them is not run."""
    module = ModuleType("page_gradients_code")
    for block in re.findall(r"^```python\n(.*?)^```$", PAGE.read_text(), re.MULTILINE | re.DOTALL):
        if "class " in block:
            exec(compile(block, str(PAGE), "exec"), vars(module))
    return vars(module)


def pytest_configure() -> None:
    classes = page_classes()
    GRADIENTS.update({row: classes[name] for row, name in ROWS.items()})
