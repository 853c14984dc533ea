"""Everything that is private to PyTorch, in one place: here one looks first when a new version of it comes.

No other file of this package names a private module of PyTorch, or an attribute of its modules, classes and functions
that starts with an underscore; a test says so. All of these exist in PyTorch 2.13, the oldest version that is
promised, and in later ones, unless a comment says otherwise; `tools/versions.py` runs the tests on each.

PyTorch's compiler (`torch._dynamo`, `torch._inductor`) takes more than a second to import: it is imported where
something is compiled, not before.
"""

from __future__ import annotations

import functools
import importlib
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from operator import attrgetter
from typing import Any, ParamSpec, TypeVar

import torch
from torch import Tensor, fx, nn
from torch._C._functorch import (
    TransformType,  # the kinds of torch.func transforms
    _add_batch_dim,  # see `as_lane`
    _remove_batch_dim,  # see `from_lanes`
    get_dynamic_layer_stack_depth,  # how many transforms are active
    get_inplace_requires_grad_allowed,  # whether requires_grad may be set inside of a transform
    get_interpreter_stack,  # the active transforms, None if there are none
    get_unwrapped,  # the tensor that a transform has wrapped
    is_batchedtensor,  # whether it was wrapped by vmap
    is_functorch_wrapped_tensor,  # whether a tensor was wrapped by any transform
    is_legacy_batchedtensor,  # whether it is one of several cotangents of `is_grads_batched=True`
    maybe_get_bdim,  # which dimension of the wrapped tensor has the lanes
    maybe_get_level,  # of the transform that has wrapped a tensor
    peek_interpreter_stack,  # the innermost active transform, None if there is none
    pop_dynamic_layer_stack_and_undo_to_depth,  # leave transforms that an error has left active
    set_inplace_requires_grad_allowed,
)
from torch._functorch.pyfunctorch import (
    temporarily_pop_interpreter_stack,  # look past the innermost transform
)
from torch._higher_order_ops.while_loop import while_loop  # a loop as one operation of a compiled graph
from torch.autograd import forward_ad
from torch.autograd.graph import Node
from torch.fx._lazy_graph_module import _LazyGraphModule
from torch.utils import _pytree as pytree  # nested structures of tensors, as PyTorch itself takes them apart
from torch.utils._python_dispatch import (
    TorchDispatchMode,  # sees every operation, those inside autograd as well
)

__all__ = [
    "TorchDispatchMode",
    "TransformType",
    "get_dynamic_layer_stack_depth",
    "get_inplace_requires_grad_allowed",
    "get_interpreter_stack",
    "get_unwrapped",
    "is_batchedtensor",
    "is_functorch_wrapped_tensor",
    "is_legacy_batchedtensor",
    "maybe_get_bdim",
    "maybe_get_level",
    "peek_interpreter_stack",
    "pop_dynamic_layer_stack_and_undo_to_depth",
    "pytree",
    "set_inplace_requires_grad_allowed",
    "temporarily_pop_interpreter_stack",
    "while_loop",
]

P = ParamSpec("P")
R = TypeVar("R")


# Tensors and modules

add_in_place = torch._foreach_add_
"""Add each tensor of the second list to that of the first, all in a few kernels."""

plain_results: Any = torch._C._disabled_torch_function_impl
"""As `__torch_function__` of a subclass of Tensor: operations on it give plain tensors."""

Normalization = nn.modules.batchnorm._NormBase
"""The layers that write running statistics in training: BatchNorm, InstanceNorm and their like."""

ORIGINAL_MODULE = "_orig_mod"
"""The attribute of a compiled module that holds the module it was made from."""


def hooks_of(tensor: Tensor) -> Any:
    """The user's hooks of a tensor by their keys, to be changed in place; None or empty if there are none."""
    return tensor._backward_hooks


# torch.func transforms

plain: Callable[[], AbstractContextManager[Any]] = torch._C._DisableFuncTorch
"""Inside, plain tensors are computed with as if there were no transforms: cheaper, and none of them is wrapped."""


def as_lane(x: Tensor, level: int) -> Tensor:
    """A tensor with the lanes of vmap in front, as each lane of the vmap of that level sees it."""
    return _add_batch_dim(x, 0, level)


def from_lanes(x: Tensor, level: int, size: int) -> Tensor:
    """The inverse of `as_lane`."""
    return _remove_batch_dim(x, level, size, 0)


# Autograd

sequence_number: Callable[[], int] = torch.autograd._get_sequence_nr
"""The number that the next node of a graph gets in this thread."""

_SAVED: Any = torch._C._autograd  # pyright: ignore[reportAttributeAccessIssue]

why_hooks_are_disabled: Callable[[], str | None] = _SAVED._saved_tensors_hooks_get_disabled_error_message
"""What hooks of saved tensors raise that somebody sets now; None where they may be set."""


def number_of(node: Node) -> int:
    """The sequence number of a node: later ones are larger. The class is asked: a Function's context may hide it."""
    return type(node)._sequence_nr(node)


results_of: Callable[[Node], Sequence[Any]] = attrgetter("_input_metadata")
"""What a node has computed: an object with `shape` and `dtype` for each result."""


def saved_tensors_are_hooked() -> bool:
    """Whether hooks of saved tensors are active."""
    return _SAVED._top_saved_tensors_default_hooks(False) is not None


def disable_saved_tensors_hooks(reason: str | None) -> None:
    """Have hooks of saved tensors raise an error with that reason; None: allow them again."""
    _SAVED._saved_tensors_hooks_enable()
    if reason is not None:
        _SAVED._saved_tensors_hooks_disable(reason, False)


# Forward-mode derivatives

is_forward_grad_enabled: Callable[[], bool] = torch._C._is_fwd_grad_enabled
enable_forward_grad: Callable[[bool], None] = torch._C._set_fwd_grad_enabled
forward_grad: Callable[[bool], AbstractContextManager[Any]] = forward_ad._set_fwd_grad_enabled
"""Whether operations compute tangents: the flag's value, its setter, and a context manager for a `with` block."""


def forward_level() -> int:
    """How many levels of forward-mode AD are entered, less one."""
    return forward_ad._current_level


def transformed() -> bool:
    """Whether a torch.func transform or forward-mode AD is active."""
    return peek_interpreter_stack() is not None or forward_ad._current_level >= 0


def innermost_tangent(x: Tensor) -> Tensor | None:
    """The tangent of a tensor for the transform that is innermost now; `unpack_dual` looks at level 0 only outside."""
    return torch._VF._unpack_dual(x, level=0)[1]


# Facts that threads of one backward pass share


def stash(key: str, value: object) -> None:
    """Keep a value for this thread, and for those threads that help with a backward pass which it starts."""
    torch._C._stash_obj_in_tls(key, value)


def stashed(key: str) -> Any:
    """The value that `stash` keeps for that key, False if there is none."""
    return torch._C._is_key_in_tls(key) and torch._C._get_obj_in_tls(key)


# Graphs of Dynamo and of autograd, as torch.fx holds them

SET_GRAD_ENABLED = torch._C._set_grad_enabled
"""The target of the nodes that switch grad mode."""

GRAD_TRANSFORM, JVP_TRANSFORM = "_grad_increment_nesting", "_jvp_increment_nesting"
DUAL_LEVEL, INFERENCE_MODE = "_enter_dual_level", "_enter_inference_mode"
"""Names of the targets of nodes that enter a transform or a mode."""


def is_view(target: object) -> bool:
    """Whether the operation's result is its input's memory."""
    if not isinstance(target, torch._ops.OpOverload):
        return False
    infos = (argument.alias_info for argument in target._schema.arguments)
    return any(info is not None and not info.is_write for info in infos)


def shows_another(x: torch.Tensor) -> bool:
    """Whether the tensor is a view of another one."""
    return x._is_view()


def write_code(module: fx.GraphModule) -> None:
    """Write the code of a graph now, not in the middle of somebody's trace."""
    _LazyGraphModule.force_recompile(module)


# PyTorch's compiler, imported where it is needed

_module = functools.cache(importlib.import_module)


def graph_break(function: Callable[P, R], reason: str) -> Callable[P, R]:
    """The function as a call where Dynamo's graphs end, for that reason.

    As `torch.compiler.disable`, which imports Dynamo at once.
    """
    apart: Any = torch._disable_dynamo(function)
    apart._torchdynamo_disable, apart._torchdynamo_disable_msg = True, reason
    return apart


def decompositions(more: Sequence[Any]) -> dict[Any, Callable[..., Any]]:
    """PyTorch's own definitions of operations by others: those of its core, and those of `more` that there are."""
    known = _module("torch._decomp")
    every = known.global_decomposition_table["post_autograd"]
    return {**{x: every[x] for x in more if x in every}, **known.core_aten_decompositions()}


def mark_dynamic(x: Tensor, dim: int) -> None:
    """Have Dynamo make graphs for any size of that dimension, where it can."""
    _module("torch._dynamo").maybe_mark_dynamic(x, dim)


def settings_of(part: str, **settings: Any) -> AbstractContextManager[Any]:
    """A context manager with these settings of a part of PyTorch; some versions' cannot be entered twice at a time."""
    return _module(f"torch.{part}.config").patch(**settings)


def is_verdict_of_dynamo(error: BaseException) -> bool:
    """Whether Dynamo says with this error that it cannot trace something."""
    exc = _module("torch._dynamo.exc")
    return isinstance(error, exc.Unsupported | exc.InternalTorchDynamoError)


def is_limit_of_graphs(error: BaseException) -> bool:
    """Whether Dynamo says with this error that it has made as many graphs of one function as it may."""
    return isinstance(error, _module("torch._dynamo.exc").FailOnRecompileLimitHit)


def joint_graphs(found: Callable[[fx.GraphModule, int], None]) -> Callable[..., Callable[..., Any]]:
    """A backend of `torch.compile` that compiles nothing.

    `found` gets the joint graph of outputs and gradients, and the number of outputs.
    """

    def partition(graph: fx.GraphModule, inputs: Any, *, num_fwd_outputs: int, **options: Any) -> Any:
        found(graph, num_fwd_outputs)
        split = _module("torch._functorch.partitioners").default_partition
        return split(graph, inputs, num_fwd_outputs=num_fwd_outputs, **options)

    def as_it_is(graph: fx.GraphModule, inputs: Any) -> Callable[..., Any]:
        return graph.forward

    aot_autograd = _module("torch._dynamo.backends.common").aot_autograd
    return aot_autograd(fw_compiler=as_it_is, bw_compiler=as_it_is, partition_fn=partition)


Pass = TypeVar("Pass")


def graph_pass(own: Pass) -> Pass:
    """A pass over graphs, `own(graph)` with `own.uuid()`, that PyTorch's disk cache of graphs knows by its `uuid`."""
    _module("torch._inductor.custom_graph_pass").CustomGraphPass.register(type(own))
    return own


def hash_of_files(*files: str) -> bytes:
    """For the `uuid` of a pass: a hash of its source files."""
    return _module("torch._inductor.custom_graph_pass").get_hash_for_files(files)


def examples() -> AbstractContextManager[Any]:
    """Inside, operations are computed on the examples of values that the nodes of the compiler's graph have."""
    return _module("torch._inductor.virtualized").V.fake_mode


def examples_of(tensors: Sequence[Tensor], dynamic: Mapping[int, set[int]]) -> tuple[Any, list[Tensor]]:
    """Tensors without numbers, such as these, with symbols for the sizes of some of their dimensions; and their mode.

    Equal sizes have the same symbol.
    """
    shapes = _module("torch.fx.experimental.symbolic_shapes")
    mode = _module("torch._subclasses").FakeTensorMode(shape_env=shapes.ShapeEnv())
    kinds, made = shapes.DimDynamic, []
    for i, x in enumerate(tensors):
        own = dynamic.get(i, set())
        dims = [kinds.DUCK if d in own else kinds.STATIC for d in range(x.ndim)]
        context = shapes.StatelessSymbolicContext(dynamic_sizes=dims)
        made.append(mode.from_tensor(x.detach(), symbolic_context=context))
    return mode, made
