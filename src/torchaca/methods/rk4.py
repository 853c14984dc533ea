"""The two methods of order 4 of Kutta: "the" Runge-Kutta method and the 3/8 rule.

W. Kutta, Beitrag zur näherungsweisen Integration totaler Differentialgleichungen, Z. Math. Phys. 46 (1901)
435-453.

The interpolants are the only ones of order 3 that use no further stage (tools/derive_dense.py).
"""

from .runge_kutta import RungeKutta

RK4 = RungeKutta(
    name="rk4",
    order=4,
    c="0 1/2 1/2 1",
    a="""
        1/2
        0 1/2
        0 0 1
    """,
    b="1/6 1/3 1/3 1/6",
    dense="""
        1 -3/2 2/3
        0 1 -2/3
        0 1 -2/3
        0 -1/2 2/3
    """,
    dense_order=3,
)

RK4_38 = RungeKutta(
    name="rk4_38",
    order=4,
    c="0 1/3 2/3 1",
    a="""
        1/3
        -1/3 1
        1 -1 1
    """,
    b="1/8 3/8 3/8 1/8",
    dense="""
        1 -15/8 1
        0 15/8 -3/2
        0 3/8 0
        0 -3/8 1/2
    """,
    dense_order=3,
)
