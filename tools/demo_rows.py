"""Changes to single rows of value layers that need no training: who answers what, and how loudly.

A row w answers a token x with w x, so the second moment of tokens says how loudly it answers them.
"""

import torch


def moment(tokens: torch.Tensor) -> torch.Tensor:
    """The second moment [64, 64] of tokens [n, 64]."""
    return tokens.T @ tokens / len(tokens)


def quieter(row: torch.Tensor, own: torch.Tensor, others: torch.Tensor) -> torch.Tensor:
    """A row that answers own tokens as `row` does and others least; both by their moments.

    Least squares: with A the own tokens' moment and M the others', w becomes (A + M)^-1 A w.
    """
    return torch.linalg.solve(own + others, own @ row)


def most_felt(usual: torch.Tensor, others: torch.Tensor) -> torch.Tensor:
    """The direction [64] that tokens of the moment `usual` feel most for what `others`' feel of it."""
    root = torch.linalg.inv(torch.linalg.cholesky(others + 1e-3 * torch.eye(len(others))))
    along: torch.Tensor = root.T @ torch.linalg.eigh(root @ usual @ root.T).eigenvectors[:, -1]
    return along
