"""The pairs of Fehlberg: RKF1(2), and RKF4(5) "formula 2".

E. Fehlberg, Low-order classical Runge-Kutta formulas with stepsize control and their application to some heat
transfer problems, NASA Technical Report R-315 (1969); RKF4(5) is table III.

Here the formulas of the higher order are propagated, those which Fehlberg uses for the estimate of the error.
The interpolant of `FEHLBERG2` is the parabola through y0 and y1 with the slope f0 at t0, that of `FEHLBERG5`,
of order 4 and C1, is derived in tools/derive_dense.py.
"""

from .runge_kutta import RungeKutta

FEHLBERG2 = RungeKutta(
    name="fehlberg2",
    order=2,
    c="0 1/2 1",
    a="""
        1/2
        1/256 255/256
    """,
    b="1/512 255/256 1/512",
    b_hat="1/256 255/256 0",
    embedded_order=1,
    dense="""
        1 -511/512
        0 255/256
        0 1/512
    """,
    dense_order=2,
)

FEHLBERG5 = RungeKutta(
    name="fehlberg5",
    order=5,
    c="0 1/4 3/8 12/13 1 1/2",
    a="""
        1/4
        3/32 9/32
        1932/2197 -7200/2197 7296/2197
        439/216 -8 3680/513 -845/4104
        -8/27 2 -3544/2565 1859/4104 -11/40
    """,
    b="16/135 0 6656/12825 28561/56430 -9/50 2/55",
    b_hat="25/216 0 1408/2565 2197/4104 -1/5 0",
    embedded_order=4,
    dense_c="1",
    dense_a="16/135 0 6656/12825 28561/56430 -9/50 2/55",
    dense="""
        1 -5/2 334/135 -77/90
        0 0 0 0
        0 1408/285 -100096/12825 14464/4275
        0 -2197/627 254852/28215 -94471/18810
        0 6/5 -78/25 87/50
        0 -18/11 188/55 -96/55
        0 3/2 -4 5/2
    """,
    dense_order=4,
)
