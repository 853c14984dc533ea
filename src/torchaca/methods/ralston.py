"""The method of order 2 with the least bound for its local error.

A. Ralston, Runge-Kutta methods with minimum error bounds, Math. Comp. 16 (1962) 431-437.
The interpolant is the parabola through y0 and y1 with the slope f0 at t0.
"""

from .runge_kutta import RungeKutta

RALSTON = RungeKutta(
    name="ralston",
    order=2,
    c="0 2/3",
    a="2/3",
    b="1/4 3/4",
    dense="""
        1 -3/4
        0 3/4
    """,
    dense_order=2,
)
