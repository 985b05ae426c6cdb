"""RMSNorm. On a GPU torch's, which is one kernel each way; on a CPU torch makes about twenty operations of it, and this
eleven, all of whole rows.

Dimensions: T tokens (or T, H of them), D normalised.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class RMSNorm(nn.RMSNorm):
    def forward(self, x: Tensor) -> Tensor:
        return rms_norm(x, self.weight, self.eps)


def rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """x / sqrt(mean(x^2) + eps) * weight over the last dimension; x (T, D) or (T, H, D), weight (D,)."""
    if x.is_cuda:
        return F.rms_norm(x, weight.shape, weight, eps)
    return _RMSNorm.apply(x, weight, eps) if torch.is_grad_enabled() else forward(x, weight, eps)[0]


def forward(x: Tensor, weight: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    """The norm of x and 1 / sqrt(mean(x^2) + eps), (T, 1)."""
    x_ = x.float()
    mean_square = torch.linalg.vector_norm(x_, dim=-1, keepdim=True).square_().div_(x.shape[-1])
    inverse = mean_square.add_(eps).rsqrt_()
    return (x_ * inverse).mul_(weight).to(x.dtype), inverse


class _RMSNorm(torch.autograd.Function):
    """With y = x r w and r = (mean(x^2) + eps)^-1/2:  dx = r (g w - x r mean(g w x r)) and dw = sum(g x r). Computed in
    float32."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, eps: float) -> Tensor:
        y, inverse = forward(x, weight, eps)
        ctx.save_for_backward(x, weight, inverse)
        return y

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, None]:
        x, weight, inverse = ctx.saved_tensors
        grad, weight_ = grad.float(), weight.float()
        normed = x.float() * inverse
        products = grad * normed
        mean = (products @ weight_).unsqueeze(-1).div_(-x.shape[-1])  # (T, 1)
        grad_weight = products.flatten(0, -2).sum(0)
        return (normed.mul_(mean).addcmul_(grad, weight_).mul_(inverse)).to(x.dtype), grad_weight.to(weight.dtype), None
