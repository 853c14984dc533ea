"""Why an exponent is not that of its O(): the constants of its terms, fitted to everything that was measured."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from .laws import AXES, LAWS, Law, Line, exponents, product

DEVIATES = 0.1  # from the exponent of the O()
FITS = 0.05  # the largest relative error of a fit that explains its points
SEEN = 0.005  # the share of a point below which a term is left out


def deviations(lines: Sequence[Line], variants: Sequence[str], quantity: str) -> list[str]:
    """One sentence for every exponent that is not that of its O()."""
    found = []
    for variant in variants:
        for axis in AXES:
            measured, law = exponents(lines, variant, quantity, axis)
            if measured is not None and law is not None and abs(measured - law) > DEVIATES:
                why = explanation(lines, variant, quantity)
                found.append(f"{variant}, {axis}, {measured:.2f} for {law:.2f}: {why}.")
    return found


def explanation(lines: Sequence[Line], variant: str, quantity: str) -> str:
    """What the O() with constants, and with a part that does not grow with N_f, makes of the measurements."""
    law, own = LAWS[variant][quantity], [line for line in lines if line.get("variant") == variant]
    terms = [*law.terms, *_without_layers(law)]
    if len(own) <= len(terms):
        return "unexplained, there are too few points for a fit"
    values = np.array([line[quantity] for line in own], dtype=float)
    shares = np.array([[product(term, line) for term in terms] for line in own]) / values[:, None]
    constants = np.linalg.lstsq(shares, np.ones(len(own)), rcond=None)[0]
    error = float(abs(shares @ constants - 1).max())
    seen = abs(shares * constants).max(axis=0) > SEEN
    formula = _formula(
        [pair for pair, there in zip(zip(constants, terms, strict=True), seen, strict=True) if there]
    )
    fit = f"{formula} is within {error:.1%} of all {len(own)} points"
    if error > FITS:
        return f"{fit}, which leaves as much unexplained"
    rest = "unequal constants" if len(law.terms) > 1 else "a part that does not grow with N_f"
    return f"{fit}, the O() with {rest}"


def _without_layers(law: Law) -> list[str]:
    """The terms with N_f taken out of them, as far as these are not terms themselves."""
    reduced = (" ".join(factor for factor in term.split() if factor != "N_f") for term in law.terms)
    return list(dict.fromkeys(term for term in reduced if term not in law.terms))


def _formula(parts: Sequence[tuple[float, str]]) -> str:
    """`12.0 N_f + 1.0 N_t - 2.0`."""
    text = " ".join(
        f"{'-' if constant < 0 else '+'} {abs(constant):.1f} {term}".rstrip() for constant, term in parts
    )
    return text.removeprefix("+ ")
