"""The pages on the native scorer: its speed, and its loss of accuracy."""

from __future__ import annotations

from benchmarks.tables import COLOURS, DOCS, GREY, Row, grouped, machines, number, ranged, table


def scorer(found: list[Row]) -> str:
    """Full catalogues compared with FAISS and with the machine's bound; lists; many users."""
    found = sorted(found, key=lambda row: (row["case"]["items"], row["case"]["threads"]))
    plot(found)
    lines = [
        "# The native scorer",
        "",
        "How long does it take to find the best 100 of a full catalogue for one user? LIME scores",
        "a quantised index with its head; FAISS `IndexFlatIP` scans as many vectors of 64 float32.",
        "The two take turns within one run and have the same threads. `bound` is the least time",
        "that the machine allows: the bytes read at the memory's bandwidth, or the multiply-adds",
        "at their peak rate in registers, whichever takes longer, both measured in the same run.",
        "Values are medians, with their range in brackets.",
        "Reproduce with `python -m benchmarks.scorer`.",
        "",
        *machines(found),
        "",
        "![Milliseconds for one user](scorer.svg)",
        "",
    ]
    lines += table(
        ["items", "head", "threads", "ms", "FAISS ms", "ratio", "bound ms", "bound by", "share"],
        [
            [
                f"{row['case']['items']:,}",
                head_of(row),
                str(row["case"]["threads"]),
                ranged(row, "ms_p50", "{:.2f}"),
                ranged(row, "faiss_ms_p50", "{:.2f}"),
                f"{row['metrics']['ratio_to_faiss']:.2f}",
                f"{row['metrics']['bound_ms']:.2f}",
                str(row["metrics"]["bound_is"]),
                f"{100 * row['metrics']['share_of_bound']:.0f} %",
            ]
            for row in found
        ],
    )
    lines += [
        "",
        "The best 20 of a list of candidates, called from Python; and the time per user when many",
        "users share one pass over the index:",
        "",
    ]
    lines += table(
        [
            "items",
            "head",
            "threads",
            "list: µs",
            "users: ms",
            "times as fast",
            "FAISS ms",
        ],
        [
            [
                f"{row['case']['items']:,}",
                head_of(row),
                str(row["case"]["threads"]),
                f"{row['metrics']['list_candidates']}: {row['metrics']['list_us_p50']:.0f}",
                f"{row['metrics']['together_users']}: {row['metrics']['together_ms_per_user']:.2f}",
                f"{row['metrics']['together_times_faster']:.2f}",
                f"{row['metrics']['together_faiss_ms_per_user']:.2f}",
            ]
            for row in found
        ],
    )
    return "\n".join(lines)


def head_of(row: Row) -> str:
    case = row["case"]
    return f"{case['hidden']} {'gated ' if case['gated'] else ''}{case['activation']}"


def plot(found: list[Row]) -> None:
    import matplotlib.pyplot as plt

    most = max(row["case"]["items"] for row in found)
    shown = [row for row in found if row["case"]["items"] == most]
    panels = grouped(shown, lambda row: str(row["case"]["threads"]))
    figure, axes = plt.subplots(1, len(panels), figsize=(3.8 * len(panels), 2.8), squeeze=False)
    for panel, (threads, part) in zip(axes[0], panels.items(), strict=True):
        names = [head_of(row) for row in part]
        positions = range(len(part))
        panel.barh(positions, [row["metrics"]["ms_p50"] for row in part], color=COLOURS["lime-mha"])
        for position, row in enumerate(part):
            panel.plot(
                [row["metrics"]["bound_ms"]] * 2, [position - 0.4, position + 0.4], color="black"
            )
        faiss = [row["metrics"]["faiss_ms_p50"] for row in part]
        panel.axvspan(min(faiss), max(faiss), color=GREY, alpha=0.4, lw=0)
        panel.set_yticks(positions, names)
        panel.invert_yaxis()
        panel.set_xlabel("ms; grey: FAISS, black: bound")
        panel.set_title(f"{most:,} items, {threads} thread(s)", loc="left", fontsize=9)
        for side in ("top", "right"):
            panel.spines[side].set_visible(False)
    figure.tight_layout()
    figure.savefig(DOCS / "scorer.svg", metadata={"Date": None})
    plt.close(figure)


def fidelity(found: list[Row]) -> str:
    """The loss of the quantised index against the float32 model."""
    lines = [
        "# What quantisation loses",
        "",
        "The native scorer over a quantised index, compared with the float32 model, on the test",
        "split of trained runs. `lost`: AUC of the model minus AUC of the scorer. `overlap`: share",
        "of the model's best 100 of the full catalogue that are among the scorer's best 100, as",
        "the mean and the minimum over users. `paths differ`: positions at which the",
        "implementations disagree, over 100 lists of 100.",
        "Reproduce with `python -m benchmarks.fidelity RUN ...`.",
        "",
        *machines(found),
        "",
    ]
    body = []
    for row in found:
        metrics = row["metrics"]
        task = next(name for name in metrics if name.endswith("auc"))
        body.append(
            [
                row["case"]["dataset"],
                row["case"]["model"],
                head_of(row),
                number(metrics[task]),
                f"{metrics[f'{task}_lost']:+.1e}",
                f"{100 * metrics['overlap']:.2f} %, {100 * metrics['overlap_min']:.0f} %",
                f"{metrics['logit_error_rms']:.4f}, {metrics['logit_error_max']:.4f}",
                f"{metrics['paths differ']} ({row['case']['paths']})",
            ]
        )
    heads = [
        "data",
        "model",
        "head",
        "AUC",
        "lost",
        "overlap",
        "logit error rms, max",
        "paths differ",
    ]
    return "\n".join([*lines, *table(heads, body)])
