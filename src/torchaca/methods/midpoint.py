"""The explicit midpoint rule.

C. Runge, Ueber die numerische Auflösung von Differentialgleichungen, Math. Ann. 46 (1895) 167-178.
The interpolant is the parabola through y0 and y1 with the slope f0 at t0.
"""

from .runge_kutta import RungeKutta

MIDPOINT = RungeKutta(
    name="midpoint",
    order=2,
    c="0 1/2",
    a="1/2",
    b="0 1",
    dense="""
        1 -1
        0 1
    """,
    dense_order=2,
)
