"""The methods of orders 2 and 3 of Heun.

K. Heun, Neue Methoden zur approximativen Integration der Differentialgleichungen einer unabhängigen
Veränderlichen, Z. Math. Phys. 45 (1900) 23-38.

`HEUN2` is the explicit trapezoidal rule, `HEUN_EULER` the same method with Euler's as the embedded one. Their
interpolant is the parabola through y0 and y1 with the slope f0 at t0. The interpolant of `HEUN3` has order 2,
and order 3 where f is linear with constant coefficients: it satisfies the order condition
sum_ij b_i(theta) a_ij c_j = theta^3/6 but not sum_i b_i(theta) c_i^2 = theta^3/3.
"""

from .runge_kutta import RungeKutta

HEUN2 = RungeKutta(
    name="heun2",
    order=2,
    c="0 1",
    a="1",
    b="1/2 1/2",
    dense="""
        1 -1/2
        0 1/2
    """,
    dense_order=2,
)

HEUN_EULER = RungeKutta(
    name="heun_euler",
    order=2,
    c="0 1",
    a="1",
    b="1/2 1/2",
    b_hat="1 0",
    embedded_order=1,
    dense="""
        1 -1/2
        0 1/2
    """,
    dense_order=2,
)

HEUN3 = RungeKutta(
    name="heun3",
    order=3,
    c="0 1/3 2/3",
    a="""
        1/3
        0 2/3
    """,
    b="1/4 0 3/4",
    dense="""
        1 -3/2 3/4
        0 3/2 -3/2
        0 0 3/4
    """,
    dense_order=2,
)
