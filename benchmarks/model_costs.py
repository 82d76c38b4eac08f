"""What a model costs, counted: weights outside of embedding tables, and multiply-adds."""

from __future__ import annotations

from pathlib import Path
from typing import Any


def costs(run: Path, folder: Path) -> dict[str, float]:
    """Weights outside of embedding tables, and multiply-adds with a full history: of encoding a
    user once, and of scoring a candidate when its item and user are already encoded."""
    import numpy as np
    import torch
    from torch.utils.flop_counter import FlopCounterMode

    from limerank.data.dataset import Dataset
    from limerank.models.tables import EmbeddingTable
    from limerank.runs.folder import load_run

    of, dataset = load_run(run), Dataset(folder)
    ranker = of.ranker
    tables = sum(
        part.weight.numel() for part in ranker.modules() if isinstance(part, EmbeddingTable)
    )
    requests = dataset.requests_of("test")
    lengths = dataset.history_lengths(requests, of.history)
    batch = dataset.batch(requests[[int(np.argmax(lengths))]], of.history)
    with torch.inference_mode():
        events = ranker.item_vectors(batch.items)
        fused = {torch.ops.aten._scaled_dot_product_flash_attention_for_cpu: attention_operations}
        with FlopCounterMode(display=False, custom_mapping=fused) as of_user:
            state = ranker.encode_users(batch.users, events)
        personaliser = getattr(ranker, "personaliser", None)  # of LIME
        in_cpp = personaliser.multiply_adds(int(lengths.max())) if personaliser else 0
        items = ranker.item_vectors(dataset.item_batch(np.arange(min(512, len(dataset.items)))))
        terms = ranker.encode_items(items)
        with FlopCounterMode(display=False, custom_mapping=fused) as of_items:
            ranker.score(state, terms)
    return {
        "dense_weights": sum(weight.numel() for weight in ranker.parameters()) - tables,
        "user_multiply_adds": of_user.get_total_flops() / 2 + in_cpp,
        "score_multiply_adds_per_candidate": of_items.get_total_flops() / 2 / len(items),
        "score_history": int(lengths.max()),
    }


def attention_operations(
    queries: tuple[int, ...], keys: tuple[int, ...], values: tuple[int, ...], *_: Any, **__: Any
) -> int:
    """Operations of fused attention on a CPU, which the counter does not know; each multiply-add
    counts as two."""
    batch, heads, links, e = queries
    return 2 * batch * heads * links * keys[2] * (e + values[3])
