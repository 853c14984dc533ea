"""The pair of orders 3(2) of Bogacki and Shampine.

P. Bogacki and L. F. Shampine, A 3(2) pair of Runge-Kutta formulas, Appl. Math. Lett. 2 (1989) 321-325.
The interpolant is Hermite's cubic, which every method has that gives no other.
"""

from .runge_kutta import RungeKutta

BOSH3 = RungeKutta(
    name="bosh3",
    order=3,
    c="0 1/2 3/4 1",
    a="""
        1/2
        0 3/4
        2/9 1/3 4/9
    """,
    b="2/9 1/3 4/9 0",
    b_hat="7/24 1/4 1/3 1/8",
    embedded_order=2,
)
