"""What a graph becomes: outputs, memory, reasons, and C that runs where nothing of PyTorch's library is found."""

import re
import shutil
import subprocess

import pytest
import torch
from fields import FIELDS
from generated import FLAGS, N, built, captured, compiled, with_pull
from rows import tensor
from test_programs import joint_and_inputs
from torch import nn
from torch.testing import assert_close

from torchaca.native.operations import Uncovered, addresses, prelude, translate
from torchaca.native.operations.libraries import SLEEF, TWO

D = torch.float64
both = pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
BY_NAME = {case.name: case for case in FIELDS}


def function_of(f, *given, flags=FLAGS, symbolic=True):
    """f as C."""
    return compiled([captured(f, given, symbolic)], given[0].dtype, flags)[0]


@both
def test_vector_functions_are_close_also_where_they_are_special(dtype):
    special = [0.0, -0.0, 1.0, -1.0, 1e-30, torch.inf, -torch.inf, torch.nan]
    x = torch.cat([torch.linspace(-8, 8, 997, dtype=dtype), torch.tensor(special, dtype=dtype)])
    y = x.flip(0)
    names = sorted(SLEEF.keys() - {"exp2"})

    def every(x, y):
        return tuple(getattr(torch, name)(x, *([y] if name in TWO else [])) for name in names)

    for name, a, b in zip(names, function_of(every, x, y, symbolic=False)(x, y), every(x, y), strict=True):
        assert_close(
            a,
            b,
            equal_nan=True,
            rtol=8 * torch.finfo(dtype).eps,
            atol=1e-30,
            msg=lambda m, n=name: f"{n}: {m}",
        )


@pytest.mark.parametrize(
    ("dtype", "flags"),
    [(torch.float64, "-O1 -fopenmp-simd"), (torch.float32, FLAGS.replace("native", "x86-64-v3"))],
    ids=["plain", "avx2"],
)
def test_code_for_other_processors(dtype, flags):
    case = BY_NAME["energy-model"]
    joint, given = joint_and_inputs(case, N, dtype)
    done = compiled([captured(joint, given)], dtype, flags)[0]
    for n in (N, 64):
        joint, given = joint_and_inputs(case, n, dtype)
        for a, b in zip(done(*given), joint(*given), strict=True):
            assert_close(a, b)


def test_code_where_nothing_is_found(monkeypatch):
    monkeypatch.setattr("torchaca.native.operations.libraries._address", lambda symbol: None)
    joint, given = joint_and_inputs(BY_NAME["wide"], 64, D)
    done = compiled([captured(joint, given, symbolic=False)], D)[0]
    assert not any(addresses(D, done.function.libraries))
    for a, b in zip(done(*given), joint(*given), strict=True):
        assert_close(a, b)


@pytest.mark.parametrize("turned", [(False, False), (True, False), (False, True), (True, True)])
def test_products_of_matrices_that_are_transposed(turned):
    """Below and above what BLAS is called for, and transposed as a whole."""
    shapes = [(N, 30), (30, 20)]
    lay = lambda x, turn: x.t().contiguous().t() if turn else x  # noqa: E731
    made = [lay(tensor("x", shape, D, 0), turn) for shape, turn in zip(shapes, turned, strict=True)]

    def products(a, b):
        return a @ b, (a @ b).t(), b.t() @ a.t() + 1

    done = function_of(products, *made)
    for n in (N, 2, 50):
        a = lay(tensor("y", (n, 30), D, 1), turned[0])
        for got, want in zip(done(a, made[1]), products(a, made[1]), strict=True):
            assert_close(got, want)


def test_nan_stays_nan():
    x = torch.tensor([1.0, torch.nan, -1.0], dtype=D)
    f = lambda x: (x.relu(), x.clamp(-1, 1), x.amax(), torch.maximum(x, -x), x.abs(), x.softmax(0))  # noqa: E731
    for got, want in zip(function_of(f, x, symbolic=False)(x), f(x), strict=True):
        assert_close(got, want, equal_nan=True, rtol=0, atol=0)


def test_an_index_beyond_the_end_gives_nan():
    x, i = torch.randn(4, 3, dtype=D), torch.tensor([0, 4, -9])
    f = lambda x, i: (x[i], x.gather(0, i[:, None]), x.index_put((i,), x[:3]))  # noqa: E731
    found, gathered, put = function_of(f, x, torch.tensor([0, 1, 2]), symbolic=False)(x, i)
    assert found[0].isfinite().all()
    assert found[1:].isnan().all()
    assert gathered.isnan().any()
    assert put.isnan().any()


def test_buffers_share_memory():
    """A long chain of products takes the memory of two of them."""
    w = torch.randn(64, 64, dtype=D) / 8

    def chain(x, w):
        for _ in range(20):
            x = torch.tanh(x @ w)
        return x

    x = torch.randn(N, 64, dtype=D)
    done = function_of(chain, x, w)
    assert_close(done(x, w)[0], chain(x, w))
    assert eval(done.function.workspace.replace("/", "//"), {"sizes": [100]}) <= 2.1 * 100 * 64 * 8


def test_small_buffers_of_known_size_are_local():
    joint, given = joint_and_inputs(BY_NAME["three-bodies"], N, D)
    assert translate(captured(joint, given), "f", D).workspace == "0"


def test_outputs_that_are_the_same_and_inputs_that_are_outputs():
    x = torch.randn(N, 4, dtype=D)
    f = lambda x: (x, x * 2, (x * 2).t(), x[:, 1], x.sum(), x.sum())  # noqa: E731
    for got, want in zip(function_of(f, x)(x), f(x), strict=True):
        assert_close(got, want)
        assert got.is_contiguous()


def test_numbers_as_arguments():
    """A float that changes is read, not written into the code."""
    graph = captured(lambda x: x * 2.5 + 7.0, [torch.randn(N, 4, dtype=D)])
    graph = with_number(graph)
    done = compiled([graph], D)[0]
    assert [x.kind for x in done.function.arguments] == ["data", "number"]
    x = torch.randn(5, 4, dtype=D)
    assert_close(done(x, 0.25)[0], x * 0.25 + 7.0)


def with_number(graph):
    """The graph with 2.5 as an argument."""
    (node,) = [x for x in graph.graph.nodes if 2.5 in x.args]
    with graph.graph.inserting_after(graph.graph.find_nodes(op="placeholder")[-1]):
        number = graph.graph.placeholder("number")
    number.meta["val"] = 2.5
    node.args = (node.args[0], number)
    return graph


def test_no_text_of_the_user_is_in_the_code():
    graph = captured(torch.tanh, [torch.randn(N, dtype=D)])
    for node in graph.graph.nodes:
        node.name = f"secret_{node.name}"
    text = translate(graph, "f", D).text
    assert "secret" not in text


@pytest.mark.parametrize(
    ("f", "said"),
    [
        (lambda x: x + torch.rand(4), "random"),
        (lambda x: x.sort(1)[0], "sort"),
        (lambda x: torch.fft.rfft(x).abs(), "complex"),
        (lambda x: nn.functional.conv1d(x[None], torch.ones(7, 7, 3, dtype=D)), "convolution"),
        (lambda x: torch.linalg.solve(x[:4] @ x[:4].T, x[:4]), "factorisation"),
        (torch.special.i0, "vector function"),
        (lambda x: x.lgamma(), "vector function"),
        (lambda x: torch.cdist(x, x), "write"),
        (lambda x: x.half() * 2, "float16"),
        (lambda x: x.float() @ x.float().T, "float32"),
        (lambda x: x.long() @ x.long().T, "int64"),
        (lambda x: x.scatter_reduce(1, torch.zeros(7, 4, dtype=torch.int64), x, "amax"), "scatter_add"),
        (lambda x: x.roll(1), "dims"),
        (lambda x: x.add_(1), "in place"),
    ],
)
def test_what_is_not_covered_is_said(f, said):
    with pytest.raises(Uncovered, match=said):
        translate(captured(f, [torch.randn(N, 4, dtype=D)], symbolic=False), "f", D)


def test_all_that_is_not_covered_is_said():
    graph = captured(lambda x: x.sort(1)[0] + x.lgamma(), [torch.randn(N, 4, dtype=D)], symbolic=False)
    with pytest.raises(Uncovered, match=r"sort.*; lgamma"):
        translate(graph, "f", D)


@both
def test_states_of_other_dtypes_are_refused(dtype):
    prelude(dtype, [])
    with pytest.raises(Uncovered, match="float32 or float64"):
        prelude(torch.bfloat16, [])


def test_tensors_of_the_other_floating_dtype():
    single = torch.randn(4)
    f = lambda x, s: (x * s, torch.where(s > 0, x, 2.0), (s + 1).to(D) * x, torch.sin(s).to(D))  # noqa: E731
    x = torch.randn(N, 4, dtype=D)
    for got, want in zip(function_of(f, x, single)(x, single), f(x, single), strict=True):
        assert_close(got, want, rtol=1e-6, atol=1e-7)


def test_integers_and_booleans():
    i, b = torch.arange(-6, 8).reshape(7, 2), torch.arange(14).reshape(7, 2) % 3 == 0
    x = torch.randn(N, 2, dtype=D)

    def f(x, i, b):
        whole = (
            i // 3 + i % 3 + (~i & 5) + i.clamp(-2, 3) + i.abs() + torch.maximum(i, -i) + i.sign() + (i == 2)
        )
        return (
            whole + 0,
            i.sum(),
            (b & (i > 0)).sum(1),
            b.any(),
            x * i,
            x[b.long(), 0],
            i.cumsum(0),
            i.amax(0),
            ~b,
        )

    for got, want in zip(function_of(f, x, i, b, symbolic=False)(x, i, b), f(x, i, b), strict=True):
        assert_close(got, want)


@both
@pytest.mark.slow
def test_graphs_made_at_random(dtype):
    """Chains of operations that were drawn: fusion, views and broadcasts in orders that nobody has thought of."""
    steps = (
        *(lambda x, y: x + y, lambda x, y: x * y, lambda x, y: x.tanh(), lambda x, y: x.t() @ y / 4),
        *(
            lambda x, y: x.t(),
            lambda x, y: x - x.mean(0),
            lambda x, y: x / (1 + x.abs().sum(1, keepdim=True)),
        ),
        *(lambda x, y: x.flip(1), lambda x, y: x.roll(1, 0), lambda x, y: torch.cat([x[:, 2:], y[:, :2]], 1)),
        *(lambda x, y: x.softmax(1), lambda x, y: torch.where(x > y, x, y), lambda x, y: x.cumsum(1) / 4),
        *(
            lambda x, y: x[:, :1] * y,
            lambda x, y: x.reshape(2, 32).sin().reshape(8, 8),
            lambda x, y: x.amax(0) + y,
        ),
        *(
            lambda x, y: torch.stack([x, y], 2).sum(2),
            lambda x, y: x.expand(3, 8, 8).mean(0),
            lambda x, y: x @ y / 8,
        ),
    )
    made, fs = torch.Generator().manual_seed(0), []
    for _ in range(60):
        order = torch.randint(len(steps), (14,), generator=made).tolist()

        def f(x, y, order=order):
            for i in order:
                x, y = y, steps[i](x, y)
            return x + y

        fs.append(f)
    given = [torch.randn(8, 8, generator=made, dtype=dtype) for _ in range(3)]
    graphs = [captured(with_pull(f, given[1:]), given, symbolic=False) for f in fs]
    for f, done in zip(fs, compiled(graphs, dtype), strict=True):
        for got, want in zip(done(*given), with_pull(f, given[1:])(*given), strict=True):
            assert_close(
                got,
                want,
                rtol=1e-3 if dtype == torch.float32 else 1e-7,
                atol=1e-4 if dtype == torch.float32 else 1e-9,
            )


def test_text_is_plain_c():
    """No library of C is included, so that the same text can be compiled for other machines."""
    joint, given = joint_and_inputs(BY_NAME["attention"], N, D)
    function = translate(captured(joint, given), "f", D)
    text = prelude(D, function.libraries) + function.text
    assert "#include" not in text
    assert not re.search(r"\b(malloc|free|printf|auto|template|class)\b", text)
    built(text)
    subprocess.run(["cc", "-xc", "-std=c11", "-fsyntax-only", "-"], input=text, text=True, check=True)


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("nvcc") is None, reason="needs CUDA's compiler; no card")
@both
def test_text_compiles_for_cuda(dtype, tmp_path):
    """The same text, as functions of a device: one thread computes all. It is not run."""
    chosen = [BY_NAME[name] for name in ("three-bodies", "gru", "attention", "controlled", "energy-model")]
    made = []
    for i, case in enumerate(chosen):
        joint, given = joint_and_inputs(case, N, dtype)
        made.append(translate(captured(joint, given), f"f{i}", dtype))
    libraries = frozenset().union(*(x.libraries for x in made))
    takes = "const void *const *in, void *const *out, const i64 *sizes, const double *numbers, T *space"
    calls = "".join(f"f{i}(in, out, sizes, numbers, space);" for i in range(len(made)))
    text = prelude(dtype, libraries) + "".join(x.text for x in made)
    path = tmp_path / "graphs.cu"
    path.write_text(f'{text}extern "C" __global__ void all({takes}) {{ {calls} }}\n')
    command = ["nvcc", "-arch=sm_80", "-c", "-o", str(tmp_path / "graphs.o"), str(path)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
