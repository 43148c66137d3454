"""The report of a training run: figures as PNG files, and the model card."""

from pathlib import Path

import matplotlib
import numpy as np
import pandas as pd
import seaborn
from matplotlib.figure import Figure

from expressions.cli import escape_unprintable
from expressions.files import atomic_write
from expressions.training.metrics import Evaluation, compare, format_corrupted
from expressions.training.readers import Dataset

matplotlib.rcParams["text.parse_math"] = False  # a class may have $ in its name
MODEL_CARD = Path(__file__).with_name("model_card.md")
GRID = (4, 8)  # rows and columns of an image grid
MAX_ROWS = 40  # classes in a figure of samples, which would else be too large to draw


def write_report(
    folder: Path, metadata: dict, data: Dataset, evaluations: dict, corrupted: pd.DataFrame, megabytes: float
) -> None:
    """Write curves, confusion matrix, the most confident mistakes and the model card into the folder of a run.

    metadata, megabytes: of the model file. evaluations, corrupted: see `metrics.evaluate` and `evaluate_corrupted`; on
    the validation split. The first evaluation is shown in detail.
    """
    history = pd.read_csv(folder / "history.csv")
    first = next(iter(evaluations.values()))
    ranked = history.sort_values(["val_accuracy", "val_loss"], ascending=[False, True])  # as AtomicModelCheckpoint does
    epoch = int(ranked["epoch"].iloc[0]) + 1
    _plot_curves(history, epoch, folder / "curves.png")
    plot_confusion_matrix(first, folder / "confusion_matrix.png")
    plot_top_losses(data.splits["validation"].images, first, folder / "mistakes.png")
    run = {"epoch": epoch, "epochs": history["epoch"].max() + 1, "minutes": round(history["seconds"].sum() / 60, 1)}
    run |= {"corrupted": to_markdown(format_corrupted(corrupted)), "megabytes": megabytes}
    card = _render_model_card(metadata | run, data, evaluations)
    with atomic_write(folder / "README.md") as partial:
        partial.write_text(card, encoding="utf-8", errors="backslashreplace")


def plot_samples(data: Dataset, label: str | None, path: Path) -> None:
    """Plot training images, spread evenly over the split: a grid of the class `label`, or a row of each class."""
    train, images, captions = data.splits["train"], [], []
    count = GRID[0] * GRID[1] if label else GRID[1]
    for each in [label] if label else data.labels[:MAX_ROWS]:
        rows = np.flatnonzero(train.labels == data.labels.index(each))
        shown = rows[np.linspace(0, len(rows) - 1, count).astype(int)] if len(rows) > count else rows
        images += [*train.images[shown], *[None] * (-len(shown) % GRID[1])]  # the next class begins a row
        captions += [f"{each}: {len(rows)}", *[""] * (len(images) - len(captions) - 1)]
    _plot_grid(images, captions, f"Training images{f' of {label}' if label else ''}", path)


def plot_distribution(data: Dataset, path: Path) -> None:
    """Plot the images per class and split."""
    figure = Figure(figsize=(8, 4), layout="constrained")
    axes = figure.add_subplot()
    counts = data.counts()[:-1].rename_axis("class").reset_index()
    counts = counts.melt("class", var_name="split", value_name="images")
    seaborn.barplot(counts, x="class", y="images", hue="split", palette="colorblind", ax=axes)
    for bars in axes.containers:
        axes.bar_label(bars, fontsize=7)
    axes.set(xlabel="", title="Images per class")
    axes.yaxis.get_major_locator().set_params(integer=True)
    seaborn.move_legend(axes, "upper left", bbox_to_anchor=(1, 1))
    _save(figure, path)


def _plot_curves(history, saved, path):
    epochs = history["epoch"] + 1
    figure = Figure(figsize=(11, 4), layout="constrained")
    for axes, name in zip(figure.subplots(1, 2), ("accuracy", "loss"), strict=True):
        axes.plot(epochs, history[name], label="train (augmented, with dropout)")
        axes.plot(epochs, history[f"val_{name}"], label="validation (plain and corrupted)")
        point = saved, history.loc[epochs == saved, f"val_{name}"]
        axes.plot(*point, "o", color="black", label=f"saved: epoch {saved}")
        axes.set(xlabel="epoch", title=name)
        axes.xaxis.get_major_locator().set_params(integer=True)
        axes.legend()
    _save(figure, path)


def plot_confusion_matrix(evaluation: Evaluation, path: Path) -> None:
    """Plot the confusion matrix: shares of the true class, which is the row, and counts below them."""
    counts = evaluation.confusion_matrix()
    shares = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    texts = [f"{share:.0%}\n{count}" for share, count in zip(shares.flat, counts.flat, strict=True)]
    figure = Figure(figsize=(8, 7), layout="constrained")
    axes = figure.add_subplot()
    seaborn.heatmap(
        shares, annot=np.reshape(texts, counts.shape), fmt="", vmin=0, vmax=1, cmap="Blues", square=True, ax=axes,
        xticklabels=evaluation.labels, yticklabels=evaluation.labels,
    )  # fmt: skip
    metrics = f"top-1 {evaluation.accuracy:.1%}, macro F1 {evaluation.macro_f1:.3f}, n = {len(evaluation.y_true)}"
    axes.set(xlabel="predicted", ylabel="true", title=f"Validation: {metrics}")
    axes.tick_params(axis="y", rotation=0)
    _save(figure, path)


def plot_top_losses(images: np.ndarray, evaluation: Evaluation, path: Path) -> None:
    """Plot a grid of the most confident mistakes among the evaluated images, gray uint8 (n, height, width)."""
    labels, y_pred, y_true = evaluation.labels, evaluation.y_pred, evaluation.y_true
    confidence = evaluation.probabilities.max(axis=1)
    wrong = np.flatnonzero(y_pred != y_true)
    shown = wrong[np.argsort(-confidence[wrong], kind="stable")][: GRID[0] * GRID[1]]
    captions = [f"predicted {labels[y_pred[row]]}\n{confidence[row]:.0%}, label {labels[y_true[row]]}" for row in shown]
    kind = f"The surest of {len(wrong)} mistakes" if len(wrong) > 1 else "One mistake" if len(wrong) else "No mistake"
    _plot_grid(images[shown], captions, f"{kind} among {len(y_true)} images", path)


def _plot_grid(images, captions, title, path):
    rows, columns = -(-len(images) // GRID[1]), GRID[1]
    figure = Figure(figsize=(columns * 1.2, rows * 1.5 + 0.4), layout="constrained")
    figure.suptitle(title)
    cells = figure.subplots(rows, columns).ravel() if rows else []
    for axes in cells:
        axes.axis("off")
    for axes, image, caption in zip(cells, images, captions, strict=False):
        if image is not None:
            axes.imshow(image, cmap="gray", vmin=0, vmax=255)
        axes.set_title(caption, fontsize=8, y=-0.08, va="top")
    _save(figure, path)


def _save(figure, path):
    with atomic_write(path) as partial:
        figure.savefig(partial, dpi=110)


def _render_model_card(metadata, data, evaluations):
    first = next(iter(evaluations.values()))
    errors = first.confusion_matrix()
    np.fill_diagonal(errors, 0)
    most = sorted(((count, *place) for place, count in np.ndenumerate(errors) if count), reverse=True)[:4]
    confusions = [f"{first.labels[true]} taken for {first.labels[predicted]} ({n})" for n, true, predicted in most]
    texts = {
        "labels": ", ".join(metadata["labels"]),
        "teachers": ", ".join(metadata["teachers"]) or "none",
        "start": metadata["start"] or "random weights",
        "fold": metadata["fold"] or "none",
        "n": len(first.y_true),
        "results": to_markdown(compare(evaluations)),
        "per_class": to_markdown(first.per_class()),
        "confusions": ", ".join(confusions) or "none",
        "counts": to_markdown(data.counts()),
        "notes": "\n".join(f"- {escape_unprintable(note)}" for note in data.notes or ["nothing was dropped"]),
    }
    return MODEL_CARD.read_text(encoding="utf-8").format(**metadata | texts)


def to_markdown(table: pd.DataFrame) -> str:
    """A DataFrame as a Markdown table, its fractions with three decimals."""

    def text(value):
        return f"{value:.3f}" if isinstance(value, float) else str(value).replace("|", "&#124;")

    rows = [["", *table.columns], ["---"] * (len(table.columns) + 1), *table.astype(object).itertuples()]
    return "\n".join(f"| {' | '.join(map(text, row))} |" for row in rows)
