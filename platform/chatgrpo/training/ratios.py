"""The importance ratio pi_theta / pi_old, per token or per sequence. See `rows` for the shapes."""

from __future__ import annotations

from typing import Literal

from torch import Tensor

from chatgrpo.training.rows import num_rows_in, row_means


def importance_ratio(
    logprobs_N: Tensor, old_logprobs_N: Tensor, row_N: Tensor, *, level: Literal["token", "sequence"]
) -> Tensor:
    """ratio_N at the given level; differentiable in `logprobs_N`."""
    if level == "token":
        return token_ratio(logprobs_N, old_logprobs_N)
    return sequence_ratio(logprobs_N, old_logprobs_N, row_N)


def token_ratio(logprobs_N: Tensor, old_logprobs_N: Tensor) -> Tensor:
    """ratio_it = exp(l - l_old)."""
    return (logprobs_N - old_logprobs_N).exp()


def sequence_ratio(logprobs_N: Tensor, old_logprobs_N: Tensor, row_N: Tensor) -> Tensor:
    """s_i = exp(sum_t (l - l_old) / n_i), once per token of row i (GSPO, arXiv:2507.18071).

    The gradient takes the stop-gradient form sg[s_i] * exp(l - sg[l]): token t carries s_i * grad l_t alone. Summed
    over a row that equals the gradient of n_i * s_i, and it allows an advantage per token."""
    log_ratio_N = (logprobs_N - old_logprobs_N).detach()
    log_s_B = row_means(log_ratio_N, row_N, num_rows_in(row_N))
    return (log_s_B[row_N] + logprobs_N - logprobs_N.detach()).exp()
