"""Methods that are known by their Butcher tables alone: no row of METHODS, no interpolant of their own."""

from dataclasses import replace

from torchaca import METHODS, RungeKutta
from torchaca.core import Carrying

KUTTA3 = RungeKutta(  # W. Kutta, Z. Math. Phys. 46 (1901) 435-453
    name="kutta3",
    order=3,
    c="0 1/2 1",
    a="""
        1/2
        -1 2
    """,
    b="1/6 2/3 1/6",
)
RALSTON3 = RungeKutta(  # A. Ralston, Math. Comp. 16 (1962) 431-437; b_hat satisfies the conditions of order 2
    name="ralston3",
    order=3,
    c="0 1/2 3/4",
    a="""
        1/2
        0 3/4
    """,
    b="2/9 1/3 4/9",
    b_hat="1/3 0 2/3",
    embedded_order=2,
)
BOGACKI_SHAMPINE5 = RungeKutta(  # P. Bogacki, L. F. Shampine, Computers Math. Applic. 32 (1996) 15-28
    name="bogacki_shampine5",
    order=5,
    c="0 1/6 2/9 3/7 2/3 3/4 1 1",
    a="""
        1/6
        2/27 4/27
        183/1372 -162/343 1053/1372
        68/297 -4/11 42/143 1960/3861
        597/22528 81/352 63099/585728 58653/366080 4617/20480
        174197/959244 -30942/79937 8152137/19744439 666106/1039181 -29421/29068 482048/414219
        587/8064 0 4440339/15491840 24353/124800 387/44800 2152/5985 7267/94080
    """,
    b="587/8064 0 4440339/15491840 24353/124800 387/44800 2152/5985 7267/94080 0",
    b_hat="2479/34992 0 123/416 612941/3411720 43/1440 2272/6561 79937/1113912 3293/556956",
    embedded_order=4,
)
OWN = {method.name: method for method in (KUTTA3, RALSTON3, BOGACKI_SHAMPINE5)}


def bare(method: RungeKutta) -> RungeKutta:
    """The method without its interpolant, as if only its Butcher table were known."""
    return replace(method, name=f"{method.name}-bare", dense="", dense_order=0, dense_c="", dense_a="")


BARE = OWN | {name: bare(method) for name, method in METHODS.items() if not isinstance(method, Carrying)}
"""These, and each Runge-Kutta method of METHODS without its interpolant: orders 1 to 8, with and without FSAL."""
