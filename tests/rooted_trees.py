"""Rooted trees and the order conditions of Runge-Kutta methods (Hairer, Norsett & Wanner, section II.2).

A tree is the sorted tuple of the trees that hang on its root, so the single vertex is `()`.
A method has order p if and only if `sum(b_i * phi_i(t)) == 1 / gamma(t)` for all trees t with up to p
vertices; continuous weights b_i(theta) have order q if and only if these sums equal
`theta**order(t) / gamma(t)` for all trees with up to q vertices.
"""

from fractions import Fraction
from functools import cache, lru_cache
from math import prod


@cache
def rooted_trees(n):
    """All rooted trees with exactly n vertices: 1, 1, 2, 4, 9, 20, 48, 115 for n = 1, ..., 8."""
    return tuple(sorted(_forests(n - 1, n - 1)))


def _forests(n, largest):
    """Sorted tuples of trees with n vertices altogether and at most `largest` vertices each."""
    if n == 0:
        return {()}
    return {
        tuple(sorted((tree, *rest)))
        for size in range(1, min(n, largest) + 1)
        for tree in rooted_trees(size)
        for rest in _forests(n - size, size)
    }


def rooted_trees_up_to(n):
    """All rooted trees with at most n vertices, small ones first."""
    return [tree for size in range(1, n + 1) for tree in rooted_trees(size)]


@cache
def order(tree):
    """The number of vertices."""
    return 1 + sum(map(order, tree))


@cache
def gamma(tree):
    """The density of the tree: the product of the orders of the subtrees which start at its vertices."""
    return order(tree) * prod(map(gamma, tree))


def elementary_weight(tree, a):
    """The list of phi_i(tree), one for each row of the matrix `a` (square or strictly lower triangular)."""
    return list(_elementary_weight(tree, tuple(map(tuple, a))))


@lru_cache(maxsize=4096)
def _elementary_weight(tree, a):
    phi = [Fraction(1)] * len(a)
    for child in tree:
        phi_child = _elementary_weight(child, a)
        branch = [sum(x * y for x, y in zip(row, phi_child, strict=False) if x) for row in a]
        phi = [x * y for x, y in zip(phi, branch, strict=True)]
    return phi


def residuals(method, weights, trees):
    """sum b_i phi_i(tree) - 1 / gamma(tree) for the stages that have a weight."""
    matrix = method.matrix[: len(weights)]
    for tree in trees:
        phi = elementary_weight(tree, matrix)
        yield sum(b * x for b, x in zip(weights, phi, strict=True)) - Fraction(1, gamma(tree))


def dense_residuals(method, trees):
    """The coefficients of sum b_i(theta) phi_i(tree) - theta^order / gamma, for every power of theta."""
    for tree in trees:
        phi = elementary_weight(tree, method.matrix)
        for power in range(1, max(len(method.polynomials[0]), order(tree)) + 1):
            column = [row[power - 1] if power <= len(row) else Fraction(0) for row in method.polynomials]
            wanted = Fraction(1, gamma(tree)) if power == order(tree) else Fraction(0)
            yield sum(p * x for p, x in zip(column, phi, strict=True)) - wanted


def largest(values):
    return max(abs(value) for value in values)
