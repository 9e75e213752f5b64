"""Models of real inputs and outputs that compute with complex numbers."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn


class Rotary(nn.Module):
    """Rotary embeddings as Llama has them: a complex buffer, or one that is computed."""

    def __init__(self, dim: int = 8, length: int = 16, *, computed: bool = False) -> None:
        super().__init__()
        angles = torch.outer(torch.arange(length), 1.0 / 100 ** (torch.arange(0, dim, 2) / dim))
        self.register_buffer("angles", angles)
        self.register_buffer("freqs_cis", torch.polar(torch.ones_like(angles), angles))
        self.computed = computed

    def forward(self, q: Tensor) -> Tensor:
        """(batch, length, heads, head_dim)."""
        freqs = torch.polar(torch.ones_like(self.angles), self.angles) if self.computed else self.freqs_cis
        freqs = freqs[: q.shape[1], None]
        pairs = torch.view_as_complex(q.float().reshape(*q.shape[:-1], -1, 2))
        return torch.view_as_real(pairs * freqs).flatten(3).type_as(q)


class Spectrogram(nn.Module):
    """Magnitudes of a short-time transform, and the signal back from it."""

    def __init__(self, n_fft: int = 50, hop: int = 13) -> None:
        super().__init__()
        self.register_buffer("window", torch.hann_window(n_fft))
        self.n_fft, self.hop = n_fft, hop

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        spectrum = torch.stft(x, self.n_fft, self.hop, window=self.window, return_complex=True)
        gain = spectrum.abs().pow(0.5) / (1 + spectrum.abs())
        back = torch.istft(spectrum * gain, self.n_fft, self.hop, window=self.window, length=x.shape[-1])
        return spectrum.abs(), torch.view_as_real(spectrum), back


class Filter(nn.Module):
    """A convolution through the spectrum, with a complex weight, as in global filter networks."""

    def __init__(self, size: int) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(size)
        self.weight = nn.Parameter(torch.randn(size // 2 + 1, dtype=torch.complex64, generator=generator))

    def forward(self, x: Tensor) -> Tensor:
        return torch.fft.irfft(torch.fft.rfft(x, norm="ortho") * self.weight, n=x.shape[-1], norm="ortho")


class Accumulator(nn.Module):
    """A complex buffer that a call writes to."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("sum", torch.zeros(3, dtype=torch.complex64))

    def forward(self, x: Tensor) -> Tensor:
        self.sum.add_(torch.complex(x, 2 * x))
        return self.sum.abs() + x


def transforms(x: Tensor) -> list[Tensor]:
    """(2, 6, 10): every function of torch.fft, and lengths that are padded, cut, prime and large."""
    full = torch.fft.fft(x)
    return [
        *(torch.view_as_real(torch.fft.rfft(x, n)) for n in (7, 131, 200)),
        *(torch.fft.irfft(full, n) for n in (9, 19)),
        torch.fft.ifft(full * 1j).imag,
        torch.fft.fft2(x).real,
        torch.fft.ifft2(full).imag,
        torch.fft.irfft2(torch.fft.rfft2(x, norm="forward"), s=(6, 10)),
        torch.fft.rfftn(x, dim=(0, 1, 2)).abs(),
        torch.fft.ifftn(full, norm="ortho").real,
        torch.fft.hfft(full[..., :6], 10),
        torch.view_as_real(torch.fft.ihfft(x).resolve_conj()),
        torch.fft.fftshift(full).real,
        torch.fft.ifftshift(full).imag,
        torch.fft.fft(x, dim=1).imag,
    ]


def arithmetic(x: Tensor, y: Tensor) -> list[Tensor]:
    """(4, 6) both: operators between complex numbers, and with real ones."""
    a, b = torch.complex(x, y), torch.complex(y + 0.5, x * 2)
    many: list[Any] = [
        a + b, a - b, a * b, a / b, a + 1, a - (1 + 2j), 2 * a, a / 2, 1 / a, 3 - a, a * 1j, x * b, b + y, a / x,
        -a, a.conj(), a.conj() * a, torch.conj_physical(b), a**2, a**-3, a**0.5, a**1.7, a.exp(), a.log(), a.sqrt(),
        a.sin(), a.cos(), a.tan(), a.sinh(), a.cosh(), a.tanh(), a.reciprocal(), a.square(), a.rsqrt(), a.sgn(),
        a.sum(1), a.mean(1), a.sum(), a.cumsum(1), a.prod(1), a @ b.T, torch.matmul(a[None], b.T[None]),
        torch.addmm(torch.eye(4, dtype=a.dtype), a, b.T), a @ y.T.to(a.dtype), torch.einsum("ij,kj->ik", a, b),
        torch.cat([a, b], 1), torch.stack([a, b]), torch.cat([a, y + 0j], 0), torch.where(x > 0, a, b),
        torch.where(x > 0, a, 0.0), a.masked_fill(x > 0, 2.0), torch.nn.functional.pad(a, (1, 2), value=3.0),
        a[:, ::2], a.T.reshape(-1), a.unsqueeze(0).expand(2, 4, 6), a.flip(0), a.roll(1, 1), a[torch.tensor([0, 2])],
        a.split(2, 1)[1], a.chunk(2)[0], a.unbind(0)[1], torch.zeros_like(a) + 1j, torch.ones(4, 6) * (1 + 1j),
        torch.full((2, 3), 1 + 2j) + x[0, 0], torch.polar(x.abs(), y), x.to(torch.complex64),
        a + b.to(torch.complex128),
        torch.view_as_complex(torch.stack([x, y], -1)), a.clone(), a.repeat(1, 2), torch.outer(a[0], b[1]),
    ]  # fmt: skip
    real = [
        a.abs(),
        a.angle(),
        a.real,
        a.imag,
        (a == a),
        (a != b),
        a.isnan(),
        a.isfinite(),
        torch.vdot(a[0], b[0]).real,
    ]
    return [*(torch.view_as_real(each.resolve_conj()) for each in many), *real]
