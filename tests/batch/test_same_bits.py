"""Numbers of samples do not depend on the places that these have in a batch."""

import pytest
import torch

from torchaca.numbers import power


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("exponent", [-0.2, -1 / 3, 0.14])
def test_a_power_has_the_same_bits_in_all_places(dtype, exponent):
    generator = torch.Generator().manual_seed(0)
    x = torch.rand(300, dtype=dtype, generator=generator) * 3 + 1e-3
    want = power(x, exponent)
    assert torch.allclose(want, x**exponent)
    for n in [1, 2, 5, 15, 31, 63, 64, 65, 100, 299]:
        assert torch.equal(power(x[:n], exponent), want[:n])
        assert torch.equal(power(x[-n:], exponent), want[-n:])
    assert torch.equal(power(x.view(3, 100), exponent), want.view(3, 100))
    assert power(x[0], exponent).shape == ()
    assert power(2.0, exponent) == 2.0**exponent
