"""The method of Euler.

L. Euler, Institutionum calculi integralis, vol. I, sectio secunda, caput VII (1768).
"""

from .runge_kutta import RungeKutta

EULER = RungeKutta(
    name="euler",
    order=1,
    c="0",
    a="",
    b="1",
    dense="1",
    dense_order=1,
)
