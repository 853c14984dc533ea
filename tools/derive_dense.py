"""Derives the continuous extensions that were computed for torchaca, and prints them.

    PYTHONPATH=src python tools/derive_dense.py        (needs mpmath and sympy; takes some seconds)

The dense output of a Runge-Kutta method is y(t0 + theta h) = y0 + h sum_i b_i(theta) k_i with polynomials
b_i(theta) = B_i1 theta + ... + B_id theta^d. It has order q, a local error O(h^(q+1)), if and only if

    sum_i phi_i(t) B_ik = [k == order(t)] / gamma(t)    for k = 1, ..., d and rooted trees t up to order q.

These conditions are linear in B: M B = R, with one row for each tree. What they leave free is used for
B_i1 = [i == 1], sum_k B_ik = b_i and sum_k k B_ik = [k_i is f(t1, y1)], which make the interpolant C1.

rk4, rk4_38
    The four stages have a unique extension of order 3.

fehlberg5
    With f(t1, y1) as a seventh stage order 4 can be reached, in C1, by a family with one parameter: the
    coefficient z of theta^4 in the multiple of b - b_hat. Its error, the L2 norm over theta in [0, 1] of the
    error coefficients of order 5, is smallest for z = -48.47; z = -48 gives the simpler numbers.

tsit5
    The published extension of order 4: b_2(theta) and b_7(theta) are free, and given with four digits; the
    others follow from the conditions, here with 30 digits.

dopri8
    Order 7 with f(t1, y1) and three more stages. This is the least: the 14 stages that are there satisfy all
    but three combinations of the conditions, and a stage adds one column to M. The arguments of the stages:
    - A stage whose argument is accurate to order 6 is exact in the conditions up to order 7. The 14 stages
      reach order 6 but for one condition, whose defect is a multiple of
      theta^2 (theta - 1)^2 (14 theta^2 - 14 theta + 3); hence they reach it at the Lobatto nodes
      theta = 1/2 -+ sqrt(7)/14. These are the first two new stages.
    - The third new stage is at theta = 11/20, which gives a small error and small coefficients. Its argument
      is of order 5, and such that the stage is as good as an exact one in the conditions of order 7: the
      defect of its column is in the span of the other columns.
    Where solutions are not unique the one with the smallest norm is taken. Stages 2 to 5 get the weight 0.
    The published coefficients satisfy the order conditions only up to 1e-17, so that the equations are solved
    in the sense of least squares, with a cut-off at 1e-12 for the rank (the singular values are either above
    1e-5 or below 1e-16). The residuals are printed.
"""

import sys
from decimal import Decimal, localcontext
from fractions import Fraction
from math import factorial
from pathlib import Path

import sympy
from mpmath import matrix, mp, mpf

from torchaca.methods.dopri8 import DOPRI8
from torchaca.methods.fehlberg import FEHLBERG5
from torchaca.methods.rk4 import RK4, RK4_38
from torchaca.methods.tsit5 import TSIT5

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests"))
from rooted_trees import elementary_weight, gamma, order, rooted_trees_up_to

mp.dps = 60


def conditions(a, q, number, make):
    """The trees up to order q, the matrix M and the right-hand side R with q columns."""
    trees = rooted_trees_up_to(q)
    m = make([[number(x) for x in elementary_weight(tree, a)] for tree in trees])
    r = make([[number(Fraction(order(tree) == k, gamma(tree))) for k in range(1, q + 1)] for tree in trees])
    return trees, m, r


def with_f1(method):
    """The stages of a method that is not FSAL, and f(t1, y1)."""
    return [*method.matrix[: method.stages], method.weights]


# --- exact solutions ---


def rational(x):
    return sympy.Rational(x.numerator, x.denominator)


def rk4_dense(method):
    _, m, r = conditions(method.matrix, 3, rational, sympy.Matrix)
    return m.LUsolve(r)


def fehlberg5_dense():
    """The family of extensions, its parameter, and the squared L2 norm of its error."""
    a = with_f1(FEHLBERG5)
    _, m, r = conditions(a, 4, rational, sympy.Matrix)
    (null,) = m.nullspace()
    z = sympy.symbols("z1:5")
    particular = sympy.Matrix.hstack(*(solution_with_zeros(m, r[:, k]) for k in range(4)))
    dense = particular + null * sympy.Rational(2, 55) * sympy.Matrix([z])  # the multiple is b - b_hat
    b = sympy.Matrix([*map(rational, FEHLBERG5.weights), 0])
    start, slope = sympy.eye(7)[:, 0], sympy.eye(7)[:, 6]
    wanted = sympy.Matrix.hstack(start, b, slope)
    sums = sympy.Matrix([[int(k == 1), 1, k] for k in range(1, 5)])
    dense = dense.subs(sympy.solve(list(dense * sums - wanted), z, dict=True)[0])
    theta = sympy.symbols("theta")
    trees, m, _ = conditions(a, 5, rational, sympy.Matrix)
    values = m * dense * sympy.Matrix([theta**k for k in range(1, 5)])
    error = sum(
        ((value - theta**5 / gamma(tree)) / symmetry(tree)) ** 2
        for value, tree in zip(values, trees, strict=True)
        if order(tree) == 5
    )
    return dense, z[3], sympy.integrate(sympy.expand(error), (theta, 0, 1))


def solution_with_zeros(m, rhs):
    """The solution whose free components are zero."""
    solution, free = m.gauss_jordan_solve(rhs)
    return solution.subs(dict.fromkeys(free, 0))


def symmetry(tree):
    """The number of automorphisms of a tree."""
    result = 1
    for child in set(tree):
        copies = tree.count(child)
        result *= factorial(copies) * symmetry(child) ** copies
    return result


# --- solutions in the sense of least squares ---


def real(x):
    return mpf(x.numerator) / x.denominator


def rounded(x, digits=20):
    return Fraction(int(mp.nint(x * 10**digits)), 10**digits)


def largest(x):
    return max(abs(value) for value in x)


def svd(m):
    """The singular value decomposition up to the numerical rank, and the right null space as rows."""
    u, s, v = mp.svd_r(m)
    rank = sum(x > mpf("1e-12") * s[0] for x in s)
    return u[:, :rank], s[:rank], v[:rank, :], v[rank:, :]


def least_squares(m, rhs):
    """The solution of smallest norm, and its residual."""
    u, s, v, _ = svd(m)
    x = v.T * (mp.diag([1 / value for value in s]) * (u.T * rhs))
    return x, largest(m * x - rhs)


def rows(m, indices):
    return matrix([[m[i, j] for j in range(m.cols)] for i in indices])


def columns(m, indices):
    return matrix([[m[i, j] for j in indices] for i in range(m.rows)])


def powers(theta, n):
    return matrix([theta**k for k in range(1, n + 1)])


def tsit5_dense():
    """The rows of B, and the residual of the conditions of order 4."""
    _, m, r = conditions(TSIT5.matrix, 4, real, matrix)
    published = {1: "0 0.1317 -0.2234 0.1017", 6: "0 1.5 -4 2.5"}
    dense = [[Fraction(x) for x in published.get(i, f"{i == 0:d} 0 0 0").split()] for i in range(7)]
    used = [i for i in range(7) if i not in published]
    given = matrix([[real(x) for x in row] for row in dense])
    x, _ = least_squares(columns(m, used), r - m * given)
    for i, j in enumerate(used):
        for k in 1, 2:
            dense[j][k] = rounded(x[i, k], 30)
        dense[j][3] = TSIT5.weights[j] - sum(dense[j])
    return dense, largest(m * matrix([[real(x) for x in row] for row in dense]) - r)


class Dopri8:
    """The growing list of stages. `used` are those which get a weight: all but stages 2 to 5."""

    def __init__(self):
        self.a = with_f1(DOPRI8)
        self.nodes = [Fraction(1)]

    @property
    def used(self):
        return [i for i in range(len(self.a)) if not 1 <= i <= 4]

    def conditions(self, q):
        trees, m, r = conditions(self.a, q, real, matrix)
        return trees, columns(m, self.used), r

    def add_stage(self, theta, weights, residual):
        """Adds a stage, with rounded weights that sum up to the node exactly."""
        print(f"dopri8: residual {mp.nstr(residual, 2)} of the argument of the stage at {float(theta):.3f}")
        row = [Fraction(0)] * len(self.a)
        for j, weight in zip(self.used, weights, strict=False):
            row[j] = rounded(weight)
        row[0] += theta - sum(row)
        self.a.append(row)
        self.nodes.append(theta)

    def exact_argument(self, theta):
        """Weights of order 6 at theta."""
        _, m, r = self.conditions(6)
        return least_squares(m, r * powers(real(theta), 6))

    def matching_argument(self, theta):
        """Weights of order 5 at theta for a stage that can replace an exact one in the conditions of order 7.

        The column of the stage in M differs from the exact one only for the trees with one branch of order 6,
        where it differs by the defect of the argument in the condition for the branch.
        """
        trees, m, r = self.conditions(7)
        span, *_ = svd(matrix([x + y for x, y in zip(m.tolist(), r.tolist(), strict=True)]))
        branches, m, r = self.conditions(6)
        r = r * powers(real(theta), 6)
        low = [i for i, tree in enumerate(branches) if order(tree) < 6]
        high = [i for i, tree in enumerate(branches) if order(tree) == 6]
        embed = matrix([[tree == (branches[i],) for i in high] for tree in trees])
        outside = embed - span * (span.T * embed)
        m, r = (matrix(rows(x, low).tolist() + (outside * rows(x, high)).tolist()) for x in (m, r))
        return least_squares(m, r)

    def dense(self):
        """The rows of B, and the residual of the conditions of order 7."""
        _, m, r = self.conditions(7)
        *_, null = svd(m)
        x, _ = least_squares(m, r)
        b = [*DOPRI8.weights] + [Fraction(0)] * len(self.nodes)
        # null.T * z, with z of smallest norm, takes x to the prescribed first column, sum and slope
        start, slope = [j == 0 for j in self.used], [j == DOPRI8.stages for j in self.used]
        wanted = matrix([start, [real(b[j]) for j in self.used], slope]).T
        sums = matrix([[int(k == 1), 1, k] for k in range(1, 8)])
        z = null * (wanted - x * sums) * mp.inverse(sums.T * sums) * sums.T
        x = x + null.T * z
        # the same once more, exactly: the first column is known, the last two follow from the sum and slope
        dense = [[Fraction(0)] * 7 for _ in self.a]
        for i, j in enumerate(self.used):
            row = [Fraction(start[i]), *(rounded(x[i, k]) for k in range(1, 5))]
            rest = b[j] - sum(row)
            rest_slope = slope[i] - sum(k * value for k, value in enumerate(row, 1))
            row.append(rounded(real(7 * rest - rest_slope)))
            dense[j] = [*row, b[j] - sum(row)]
        return dense, largest(m * matrix([[real(value) for value in dense[j]] for j in self.used]) - r)


def main():
    for method in RK4, RK4_38:
        show(f"{method.name}: dense", rk4_dense(method).tolist())

    dense, z, error = fehlberg5_dense()
    (best,) = sympy.solve(sympy.diff(error, z), z)
    for value in best, -48:
        print(f"fehlberg5: error {sympy.sqrt(error.subs(z, value)).n(6)} for z = {sympy.N(value, 6)}")
    show("fehlberg5: dense", dense.subs(z, -48).tolist())

    dense, residual = tsit5_dense()
    show(f"tsit5: dense, residual {mp.nstr(residual, 2)}", dense)

    method = Dopri8()
    lobatto = [rounded(mpf(1) / 2 + sign * mp.sqrt(7) / 14) for sign in (-1, 1)]
    for theta, argument in [(theta, method.exact_argument(theta)) for theta in lobatto]:
        method.add_stage(theta, *argument)
    method.add_stage(Fraction(11, 20), *method.matching_argument(Fraction(11, 20)))
    show("dopri8: dense_c", [method.nodes])
    show("dopri8: dense_a", method.a[DOPRI8.stages :])
    dense, residual = method.dense()
    show(f"dopri8: dense, residual {mp.nstr(residual, 2)}", dense)


def show(title, table):
    print(title)
    for row in table:
        print("   ", *map(literal, row))


def literal(x):
    """p/q, or the decimal number where it is exact and shorter."""
    with localcontext(prec=60):
        decimal = f"{Decimal(int(x.numerator)) / Decimal(int(x.denominator)):f}"
    return min([str(x)] + [decimal] * (Fraction(decimal) == x), key=len)


if __name__ == "__main__":
    main()
