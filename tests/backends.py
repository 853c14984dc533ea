"""Compiled solves without the compiler, which takes ten seconds a graph."""

import torch

from torchaca.compiled import compiler


def without_code(backend, monkeypatch):
    """Have graphs made and guarded, and run as they are."""

    def compiled(function, *, forward):
        own = compiler.renamed(function, f"{function.__name__}_{next(compiler.COUNT)}")
        options = {"guard_filter_fn": compiler._kept}
        return torch.compile(own, fullgraph=True, backend=backend, options=options)

    monkeypatch.setattr(compiler, "compiled", compiled)
