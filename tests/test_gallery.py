"""The examples run, and the pages of the gallery show them as they are."""

import pytest

from tools.gallery import EXAMPLES, GALLERY, ORDER, index, page, printed_on, run
from tools.pages import shape


def test_every_example_is_in_the_gallery():
    assert {path.stem for path in EXAMPLES.glob("*.py")} == set(ORDER)
    assert (GALLERY.parent / "gallery.md").read_text() == index(), "python -m tools.gallery writes it"


@pytest.mark.parametrize("name", ORDER)
def test_the_page_shows_the_program(name):
    text = (GALLERY / f"{name}.md").read_text()
    assert text == page(name, printed_on(text)), f"python -m tools.gallery {name} writes it"
    assert (GALLERY / f"{name}.png").exists()


def check(name, folder, **settings):
    printed = run(name, folder, **settings)
    assert (folder / f"{name}.png").stat().st_size > 5_000
    return printed


def test_an_example(tmp_path):
    printed = check("van_der_pol", tmp_path)
    assert shape(printed) == shape(printed_on((GALLERY / "van_der_pol.md").read_text()))


@pytest.mark.slow
@pytest.mark.parametrize("name", ORDER)
def test_examples(name, tmp_path):
    printed = check(name, tmp_path, STEPS="12")
    if name == "gradient_at_rest":  # has no size, and nothing in it depends on the machine
        assert shape(printed) == shape(printed_on((GALLERY / f"{name}.md").read_text()))
