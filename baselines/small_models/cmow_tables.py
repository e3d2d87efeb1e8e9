"""The tables of CMOW/CBOW-Hybrid: two matrices and a vector for every token."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from baselines.small_models.matrix_products import whole_product

NOISE = 0.01  # standard deviation of all tables at the start


class MatrixTables(nn.Module):
    """Two matrices and a vector for every token.

    Args:
        vocab_size: tokens.
        matrix: rows and columns of a matrix.
        width: of a vector.
        sparse: gradients have the rows of a batch only.
    """

    def __init__(self, vocab_size: int, matrix: int, width: int, sparse: bool = True) -> None:
        super().__init__()
        self.ahead, self.back = (nn.Embedding(vocab_size, matrix**2, sparse=sparse) for _ in range(2))
        self.vectors = nn.EmbeddingBag(vocab_size, width, mode="sum", sparse=sparse)
        self.matrix = matrix
        with torch.no_grad():
            for table in (self.ahead, self.back, self.vectors):
                nn.init.normal_(table.weight, std=NOISE)
            for table in (self.ahead, self.back):
                table.weight += torch.eye(matrix).view(-1)

    @staticmethod
    def parameters_for(vocab_size: int, matrix: int, width: int) -> int:
        """Return the parameters of such tables, which need not exist."""
        return vocab_size * (2 * matrix**2 + width)

    def products(self, ids: Tensor, inside: Tensor | None) -> tuple[Tensor, Tensor]:
        """Return the forward and the backward product of every text, [texts, matrix^2] each.

        Args:
            ids: [texts, T].
            inside: bool [texts, T], false for padding; ``None`` if there is none.
        """
        found = []
        # Rounded to bfloat16, an identity plus 0.01 is hardly more than an identity.
        with torch.autocast(ids.device.type, enabled=False):
            for table, backwards in ((self.ahead, False), (self.back, True)):
                matrices = table(ids)
                if inside is not None:
                    eye = torch.eye(self.matrix, device=ids.device).view(-1)
                    matrices = torch.where(inside[..., None], matrices, eye)
                made = whole_product(matrices.unflatten(2, (self.matrix, self.matrix)), backwards=backwards)
                found.append(made.flatten(1))
        return found[0], found[1]
