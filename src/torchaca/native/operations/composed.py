"""Operations that PyTorch itself defines by others, which have rows."""

from __future__ import annotations

from .table import Operation

F = "torch.nn.functional."
ATTENTION = f"(lambda q: {F}scaled_dot_product_attention(q, q, q))(s[None].contiguous())"

EXAMPLES: tuple[tuple[str, str], ...] = (
    # activations
    ("elu", F + "elu(x, 0.7)"),
    ("elu_backward", F + "elu(x)"),
    ("gelu", F + "gelu(x)"),
    ("gelu_backward", F + "gelu(x, approximate='tanh')"),
    ("silu", F + "silu(x)"),
    ("silu_backward", F + "silu(x)"),
    ("softplus", F + "softplus(x)"),
    ("softplus_backward", F + "softplus(x, 2.0)"),
    ("leaky_relu", F + "leaky_relu(x, 0.1)"),
    ("leaky_relu_backward", F + "leaky_relu(x, 0.1)"),
    ("mish", F + "mish(x)"),
    ("hardtanh", F + "hardtanh(x)"),
    ("hardtanh_backward", F + "hardtanh(x)"),
    ("hardsigmoid", F + "hardsigmoid(x)"),
    ("hardsigmoid_backward", F + "hardsigmoid(x)"),
    ("hardswish", F + "hardswish(x)"),
    ("hardswish_backward", F + "hardswish(x)"),
    ("log_sigmoid_forward", F + "logsigmoid(x)"),
    ("log_sigmoid_backward", F + "logsigmoid(x)"),
    ("softshrink", F + "softshrink(x)"),
    ("hardshrink", F + "hardshrink(x)"),
    ("softshrink_backward", F + "softshrink(x)"),
    ("hardshrink_backward", F + "hardshrink(x)"),
    ("threshold", F + "threshold(x, 0.1, 0.2)"),
    ("threshold_backward", "torch.relu(x)"),
    ("glu", F + "glu(x)"),
    ("glu_backward", F + "glu(x)"),
    ("_prelu_kernel", F + "prelu(x, v)"),
    ("tanh_backward", "torch.tanh(x)"),
    ("sigmoid_backward", "torch.sigmoid(x)"),
    # softmax and norms
    ("_softmax", "torch.softmax(x, 1)"),
    ("_softmax_backward_data", "torch.softmax(x, 1)"),
    ("_log_softmax", "torch.log_softmax(x, 1)"),
    ("_log_softmax_backward_data", "torch.log_softmax(x, 1)"),
    ("logsumexp", "x.logsumexp(1)"),
    ("native_layer_norm", F + "layer_norm(x, (4,), v, v)"),
    ("native_layer_norm_backward", F + "layer_norm(x, (4,), v, v)"),
    ("native_group_norm", F + "group_norm(x, 2, v, v)"),
    ("native_group_norm_backward", F + "group_norm(x, 2, v, v)"),
    ("native_batch_norm", F + "batch_norm(x, v.detach(), v.detach().abs() + 1, v, v)"),
    ("native_batch_norm_backward", F + "batch_norm(x, v.detach(), v.detach().abs() + 1, v, v)"),
    ("linalg_vector_norm", "x / torch.linalg.vector_norm(x, dim=1, keepdim=True)"),
    ("norm", "torch.ops.aten.norm(x, 3, [1])"),
    ("std", "x.std(1)"),
    # functions
    ("addcmul", "torch.addcmul(x, y, z, value=0.5)"),
    ("addcdiv", "torch.addcdiv(x, y, p)"),
    ("lerp", "torch.lerp(x, y, 0.3)"),
    ("xlogy", "torch.xlogy(x, p)"),
    ("logaddexp", "torch.logaddexp(x, y)"),
    ("logit", "torch.logit(0.5 + 0.4 * u)"),
    ("sinc", "torch.sinc(x)"),
    ("frac", "torch.frac(x)"),
    ("clamp_min", "x.clamp_min(0.1)"),
    ("clamp_max", "x.clamp_max(0.1)"),
    ("heaviside", "x * torch.heaviside(y.detach(), v.detach())"),
    ("nan_to_num", "(x / (x - x.round())).nan_to_num(0.1, 0.2, 0.3)"),
    ("masked_fill", "x.masked_fill(b, 0.5)"),
    ("mse_loss", F + "mse_loss(x, y)"),
    ("huber_loss", F + "huber_loss(x, y)"),
    ("smooth_l1_loss", F + "smooth_l1_loss(x, y)"),
    # shapes and parts
    ("repeat", "x.repeat(2, 1) * 2"),
    ("constant_pad_nd", F + "pad(x, (1, 1, -1, 1), value=0.5)"),
    ("diag_embed", "torch.diag_embed(x)"),
    ("select_backward", "x[:, 1]"),
    ("slice_backward", "x[:, 1:]"),
    ("diagonal_backward", "(x[:, :, None] * v).diagonal(0, 1, 2)"),
    ("unfold_backward", "x.unfold(1, 2, 1)"),
    ("embedding", F + "embedding(i, w)"),
    ("embedding_dense_backward", F + "embedding(i, w)"),
    ("linalg_cross", "torch.linalg.cross(x[:, :3], y[:, 1:])"),
    ("trace", "x * torch.trace(w)"),
    ("baddbmm", "torch.baddbmm(s[:, :, :1], s, s.mT)"),
    ("addmv", "torch.addmv(x[:, 0], x, v)"),
    ("_scaled_dot_product_flash_attention_for_cpu", ATTENTION),
    ("_scaled_dot_product_flash_attention_for_cpu_backward", ATTENTION),
)

SEVERAL = {
    "norm": ("ScalarOpt_dim", "Scalar"),
    "std": ("correction",),
    "lerp": ("Scalar", "Tensor"),
    "xlogy": ("Tensor",),
    "masked_fill": ("Scalar", "Tensor"),
}
"""Overloads other than the default one."""

OPERATIONS = tuple(
    Operation(name, "composed", example, SEVERAL.get(name, ("default",))) for name, example in EXAMPLES
)
