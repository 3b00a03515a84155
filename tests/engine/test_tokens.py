"""The loss over a micro-batch of prepared samples."""

from __future__ import annotations

import torch

from tests.support import tiny_model
from tsugi_cli.finetune.objectives import supervised_loss
from tsugi_cli.finetune.tokens import IGNORED, Sample, collate


def test_loss_is_the_mean_over_supervised_tokens_wherever_they_stand():
    """Logits are taken at a few columns only; the result equals the plain computation."""
    model = tiny_model()
    ids = torch.randint(3, 64, (2, 12), generator=torch.Generator().manual_seed(0))
    samples = [Sample(ids[0].tolist(), [IGNORED] * 5 + ids[0, 5:].tolist())]
    samples.append(Sample(ids[1, :9].tolist(), [IGNORED] * 2 + ids[1, 2:4].tolist() + [IGNORED] * 5))
    batch = collate(samples, pad_id=0)
    plain = model(input_ids=batch.ids, attention_mask=batch.mask, labels=batch.labels).loss
    assert batch.tokens == 9
    torch.testing.assert_close(supervised_loss(model, batch), plain, atol=1e-5, rtol=0)
