"""Names that other libraries give to settings, so that an error can state the name used here."""

from __future__ import annotations

from collections.abc import Collection, Mapping

from limerank.errors import did_you_mean

COMMON_NAMES: Mapping[str, tuple[str, ...]] = {
    "width": ("dim", "d_model", "embedding_dim", "embedding_size", "emb_dim", "factors"),
    "heads": ("n_heads", "num_heads", "nhead", "attention_heads"),
    "blocks": ("layers", "n_layers", "num_layers", "num_blocks", "n_blocks", "depth"),
    "links": ("n_links", "num_links"),
    "hidden": ("hidden_units", "hidden_dim", "mlp_dim"),
    "dropout": ("dropout_rate", "drop_rate", "hidden_dropout", "hidden_dropout_prob"),
    "history": ("max_len", "maxlen", "max_length", "max_seq_len", "max_seq_length", "seq_len"),
    "epochs": ("n_epochs", "num_epochs", "max_epochs", "num_train_epochs"),
    "batch_size": ("batch", "train_batch_size", "impressions"),
    "learning_rate": ("lr", "rate"),
    "table_learning_rate": ("table_rate", "table_lr"),
    "weight_decay": ("wd", "l2", "reg", "regularization"),
    "table_weight_decay": ("table_decay",),
    "warmup": ("warmup_ratio", "warmup_steps"),
    "clip": ("grad_clip", "gradient_clip", "clip_grad_norm", "max_grad_norm"),
    "patience": ("early_stopping", "early_stopping_patience"),
    "task_weights": ("loss_weights",),
    "seed": ("random_seed", "random_state"),
    "bf16": ("amp", "fp16", "mixed_precision", "precision"),
}
"""Setting -> its names elsewhere, or in earlier versions."""

_SETTINGS = {other: name for name, others in COMMON_NAMES.items() for other in others}


def name_here(name: str) -> str:
    """The name of a setting that other libraries call ``name``; ``name`` itself if there is none.

    Dashes and underscores are equal, as are upper and lower case.
    """
    plain = name.replace("-", "_").casefold()
    return _SETTINGS.get(plain, plain)


def hint_for(name: str, known: Collection[str], other_names: Mapping[str, str]) -> str:
    """Which setting is probably meant by an unknown name, for the end of a message.

    Args:
        name: the unknown name.
        known: the settings that there are.
        other_names: further names of settings -> the setting.

    Returns:
        ``"; it is called learning_rate here"``, ``"; did you mean 'learning_rate'?"``, or ``""``.
    """
    called = other_names.get(name) or name_here(name)
    return f"; it is called {called} here" if called in known else did_you_mean(name, known)
