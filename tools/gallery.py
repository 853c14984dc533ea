"""The gallery: `python -m tools.gallery [NAME ...]` runs examples and writes their pages into docs/gallery/.

An example is a program in jupytext's percent format: cells begin with `# %%`, those of text with `# %% [markdown]`. It
prints, and draws NAME.png where it runs.
"""

import os
import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
EXAMPLES = ROOT / "examples"
GALLERY = ROOT / "docs" / "gallery"
ORDER = (
    *("van_der_pol", "spiral", "classifier", "latent_ode_csv", "flow_matching", "parameter_estimation"),
    *("ensemble_vmap", "check_gradient", "gradient_at_rest"),
    *("bouncing_ball", "spiking_neuron", "thermostat"),
)


def run(name: str, folder: Path, **settings: str) -> str:
    """Run an example in a folder; what it printed."""
    environment = {"MPLBACKEND": "Agg", "OMP_NUM_THREADS": "1", **os.environ, **settings}
    done = subprocess.run(
        [sys.executable, EXAMPLES / f"{name}.py"],
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        raise RuntimeError(f"{name} failed:\n{done.stdout}{done.stderr}")
    return done.stdout


def cells(name: str) -> list[tuple[bool, str]]:
    """`(is text, content)` of the cells of an example."""
    source = (EXAMPLES / f"{name}.py").read_text().split("\n# %%")[1:]
    found = []
    for cell in source:
        head, _, body = cell.partition("\n")
        text = "[markdown]" in head
        body = re.sub(r"^# ?", "", body, flags=re.MULTILINE) if text else body
        found.append((text, body.strip("\n")))
    return found


def title(name: str) -> str:
    """The heading of an example."""
    return cells(name)[0][1].splitlines()[0].removeprefix("# ")


def page(name: str, printed: str) -> str:
    """The page of an example: its cells, its picture and its output."""
    (_, first), *rest = cells(name)
    parts = [first, f"![{title(name).lower()}]({name}.png)"]
    parts += [body if text else f"```python\n{body}\n```" for text, body in rest]
    parts += ["## Output", f"```text\n{printed.strip()}\n```"]
    parts += [
        f"The program is [examples/{name}.py](../../examples/{name}.py); it opens as a notebook with jupytext, too."
    ]
    return "\n\n".join(parts) + "\n"


def printed_on(text: str) -> str:
    """The output that stands on the page of an example."""
    return re.findall(r"^## Output\n\n```text\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)[-1]


def index() -> str:
    """The page with all pictures."""
    parts = [
        "# Gallery",
        "Complete programs, each of less than a minute on one core. They stand in `examples/`, in the percent format "
        "that opens as a notebook as well, and draw these pictures; `make gallery` runs them all.",
    ]
    for name in ORDER:
        _, *text = cells(name)[0][1].split("\n\n")
        parts += [
            f"## [{title(name)}](gallery/{name}.md)",
            "\n\n".join(text).strip(),
            f"[![{title(name).lower()}](gallery/{name}.png)](gallery/{name}.md)",
        ]
    return "\n\n".join(parts) + "\n"


def main() -> None:
    """Run the examples that are named, or all of them, and write the pages."""
    for name in sys.argv[1:] or ORDER:
        (GALLERY / f"{name}.md").write_text(page(name, run(name, GALLERY)))
    (GALLERY.parent / "gallery.md").write_text(index())


if __name__ == "__main__":
    main()
