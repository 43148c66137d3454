"""What a run shows of itself: metrics, curves, confusion matrix, sample pictures, mistakes, and the model card."""

from typing import NamedTuple

import matplotlib
import numpy as np
import pandas as pd
import seaborn
from matplotlib.figure import Figure

from expressions import UserError
from expressions.files import atomic_write

matplotlib.rcParams["text.parse_math"] = False  # a class may have $ in its name
CALIBRATION_BINS = 15
AGREEMENT = 0.6  # of the taggers: their majority label is then hardly a matter of chance
GRID = (4, 8)  # rows, at most, and columns of a picture grid


class Evaluation(NamedTuple):
    """What a classifier said of labelled images.

    labels: class names, in the order of the columns. truth: the true label index, int (n,).
    probabilities: float (n, classes), rows that add up to 1.
    votes: share of the taggers who chose each label, float (n, classes), where the data set has FER+ votes; what is
    missing to 1 went to other answers.
    """

    labels: tuple
    truth: np.ndarray
    probabilities: np.ndarray
    votes: np.ndarray | None = None

    def take(self, rows):
        """The Evaluation of these rows, a boolean mask or indices."""
        return Evaluation(self.labels, *(None if array is None else array[rows] for array in self[1:]))

    @property
    def predicted(self):
        """Index of the likeliest label, int (n,)."""
        return self.probabilities.argmax(axis=1)

    @property
    def top1(self):
        """Share of images whose likeliest label is the true one, 0 to 1."""
        return float((self.predicted == self.truth).mean())

    def confusion(self):
        """Counts, int (classes, classes): rows are the true labels, columns the predicted ones."""
        counts = np.zeros((len(self.labels),) * 2, dtype=np.int64)
        np.add.at(counts, (self.truth, self.predicted), 1)
        return counts

    def table(self):
        """Precision, recall, F1 (0 to 1) and support (images) per class, as a DataFrame.

        A ratio without a denominator counts as 0, but for the recall of a class without images, which is NaN."""
        counts = self.confusion()
        hits, support, calls = counts.diagonal(), counts.sum(axis=1), counts.sum(axis=0)
        table = pd.DataFrame(index=list(self.labels))
        table["precision"] = hits / np.maximum(calls, 1)
        table["recall"] = np.where(support > 0, hits / np.maximum(support, 1), np.nan)
        table["f1"] = 2 * hits / np.maximum(support + calls, 1)
        table["support"] = support
        return table

    @property
    def macro_f1(self):
        """Mean F1 over the classes that have images: each counts the same, however rare."""
        table = self.table()
        return float(table.loc[table["support"] > 0, "f1"].mean())

    @property
    def calibration_error(self):
        """Expected calibration error, 0 to 1: the mean distance of confidence from top-1 in 15 equal bins of
        confidence, each weighted with its images (Guo et al. 2017, arXiv:1706.04599, equation 3)."""
        confidence, right = self.probabilities.max(axis=1), self.predicted == self.truth
        bins = np.minimum((confidence * CALIBRATION_BINS).astype(int), CALIBRATION_BINS - 1)
        distances = np.bincount(bins, weights=confidence - right)
        return float(np.abs(distances).sum() / len(self.truth))

    @property
    def agreed(self):
        """Which images most taggers agree on: at least six of ten chose the same label. A boolean mask (n,)."""
        return self.votes.max(axis=1) >= AGREEMENT

    @property
    def majority_top1(self):
        """Share of the images that taggers agree on whose likeliest label is the taggers' one, 0 to 1."""
        agreed = self.agreed
        return float((self.predicted == self.votes.argmax(axis=1))[agreed].mean())

    def figures(self):
        """The figures that sum up all classes, under the names that users read: a dictionary of texts."""
        texts = {"top-1": f"{self.top1:.1%}", "macro F1": f"{self.macro_f1:.3f}"}
        texts["calibration error"] = f"{self.calibration_error:.1%}"
        if self.votes is not None and self.agreed.any():
            texts[f"FER+ majority (n = {self.agreed.sum()})"] = f"{self.majority_top1:.1%}"
        recalls = self.table()["recall"].dropna()
        return texts | {f"recall {label}": f"{value:.1%}" for label, value in recalls.items()}

    def metrics(self):
        """The figures that travel in the model file, as JSON values."""
        recalls = self.table()["recall"].dropna()
        return {
            "n": len(self.truth),
            "top1": round(self.top1, 6),
            "macro_f1": round(self.macro_f1, 6),
            "calibration_error": round(self.calibration_error, 6),
            "recall": {label: round(value, 6) for label, value in recalls.items()},
        }


def evaluate(classifier, split, labels):
    """Evaluate a Classifier on a Split: {"single view": Evaluation, "with mirrored view": Evaluation}, and "votes": by
    what it says of votes, single view, where it knows and the data set has them.

    labels: the class names of the split. The classifier may know more of them, in another order. Raises UserError when
    it doesn't know one. The second view averages the probabilities of each image and its mirror image."""
    unknown = [label for label in labels if label not in classifier.labels]
    if unknown:
        raise UserError(
            f"the model knows {', '.join(classifier.labels)}, the data set has {', '.join(unknown)} too; "
            "if it has another name for it, give the data set's names with --labels"
        )
    columns = np.array([classifier.labels.index(label) for label in labels])
    votes = None
    if split.votes is not None:
        votes = np.zeros((len(split.votes), len(classifier.labels)), np.float32)
        votes[:, columns] = split.votes[:, : len(labels)]
    ways = {"single view": {}, "with mirrored view": {"flip_tta": True}}
    if classifier.has_votes and votes is not None:
        ways["votes"] = {"votes": True}
    return {
        name: Evaluation(classifier.labels, columns[split.labels], classifier.predict_proba(split.images, **way), votes)
        for name, way in ways.items()
    }


def fit_temperature(views, truth):
    """The temperature by which to divide the logits of a network, so that its confidence tells how often it is right.

    views: probabilities of labelled images it was not trained on, float (views, n, classes), at temperature 1; what the
    network says is the mean over the views. truth: int (n,). It minimises the mean negative log-likelihood (Guo et al.
    2017, arXiv:1706.04599, section 4.2), to three decimals."""
    logits = np.log(np.maximum(views, 1e-12, dtype=np.float64))

    def loss(temperature):
        powers = np.exp(logits / temperature)
        said = (powers / powers.sum(axis=2, keepdims=True)).mean(axis=0)
        return -np.log(said[np.arange(len(truth)), truth]).mean()

    return float(min(np.geomspace(0.1, 10, 501).round(3), key=loss))


def write_report(folder, facts, data, evaluations, megabytes):
    """Write curves, confusion matrix, the surest mistakes and the model card into `folder`.

    facts: what the model file says of itself. data: the Dataset. evaluations: {"single view": Evaluation, ...} on its
    validation split, the first of them in detail. megabytes: size of the model file. The folder holds history.csv.
    """
    history = pd.read_csv(folder / "history.csv")
    first = next(iter(evaluations.values()))
    epoch = int(history["epoch"][history["val_accuracy"].idxmax()]) + 1
    draw_curves(history, epoch, folder / "curves.png")
    draw_confusion(first, folder / "confusion_matrix.png")
    draw_mistakes(data.splits["validation"].images, first, folder / "mistakes.png")
    with atomic_write(folder / "README.md") as partial:
        partial.write_text(card(facts, data, evaluations, megabytes, history, epoch), encoding="utf-8")


def describe(evaluations):
    """The figures of the evaluations side by side, then the first one per class, and its confusion matrix, as text."""
    first = next(iter(evaluations.values()))
    figures = pd.DataFrame({name: each.figures() for name, each in evaluations.items()})
    columns = pd.Index(first.labels, name="true, predicted:")
    confusion = pd.DataFrame(first.confusion(), index=list(first.labels), columns=columns)
    per_class = first.table().round(3)
    return "\n\n".join([figures.to_string(), per_class.to_string(na_rep="-"), confusion.to_string()])


def draw_samples(data, shown, path):
    """Draw a grid of training images of the class `shown`, spread evenly over the split, as a PNG file at `path`."""
    images, labels, _ = data.splits["train"]
    rows = np.flatnonzero(labels == data.labels.index(shown))
    picked = rows[np.linspace(0, len(rows) - 1, min(len(rows), GRID[0] * GRID[1])).astype(int)]
    title = f"{shown}: {len(picked)} of {len(rows)} training images"
    save(grid(images[picked], [""] * len(picked), title), path)


def draw_distribution(data, path):
    """Draw the images per class and split as a PNG file at `path`."""
    figure = Figure(figsize=(8, 4), layout="constrained")
    axes = figure.add_subplot()
    counts = data.counts()[:-1].rename_axis("class").reset_index()
    counts = counts.melt("class", var_name="split", value_name="images")
    seaborn.barplot(counts, x="class", y="images", hue="split", palette="colorblind", ax=axes)
    for bars in axes.containers:
        axes.bar_label(bars, fontsize=7)
    axes.set(xlabel="", title="Images per class")
    seaborn.move_legend(axes, "upper left", bbox_to_anchor=(1, 1))
    save(figure, path)


def draw_curves(table, saved, path):
    """Draw accuracy and loss over the epochs (a DataFrame of CSVLogger's file) as a PNG file at `path`.

    saved: the epoch, from 1, whose network is the model."""
    epochs = table["epoch"] + 1
    figure = Figure(figsize=(11, 4), layout="constrained")
    for axes, name in zip(figure.subplots(1, 2), ("accuracy", "loss"), strict=True):
        axes.plot(epochs, table[name], label="train (augmented, with dropout)")
        axes.plot(epochs, table[f"val_{name}"], label="validation")
        place = saved, table.loc[epochs == saved, f"val_{name}"]
        axes.plot(*place, "o", color="black", label=f"saved: epoch {saved}")
        axes.set(xlabel="epoch", title=name)
        axes.legend()
    save(figure, path)


def draw_confusion(evaluation, path):
    """Draw the confusion matrix, each row as shares of its true class with the counts below, as a PNG at `path`."""
    counts = evaluation.confusion()
    shares = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    texts = [f"{share:.0%}\n{count}" for share, count in zip(shares.flat, counts.flat, strict=True)]
    figure = Figure(figsize=(8, 7), layout="constrained")
    axes = figure.add_subplot()
    seaborn.heatmap(
        shares, annot=np.reshape(texts, counts.shape), fmt="", vmin=0, vmax=1, cmap="Blues", square=True, ax=axes,
        xticklabels=evaluation.labels, yticklabels=evaluation.labels,
    )  # fmt: skip
    title = f"Validation: top-1 {evaluation.top1:.1%}, macro F1 {evaluation.macro_f1:.3f}, n = {len(evaluation.truth)}"
    axes.set(xlabel="predicted", ylabel="true", title=title)
    axes.tick_params(axis="y", rotation=0)
    save(figure, path)


def draw_mistakes(images, evaluation, path):
    """Draw the mistakes that the classifier was surest of, as a picture grid in a PNG file at `path`."""
    confidence = evaluation.probabilities.max(axis=1)
    wrong = np.flatnonzero(evaluation.predicted != evaluation.truth)
    worst = wrong[np.argsort(-confidence[wrong], kind="stable")][: GRID[0] * GRID[1]]
    names = evaluation.labels
    captions = [
        f"{names[evaluation.predicted[row]]} {confidence[row]:.0%}\nis {names[evaluation.truth[row]]}" for row in worst
    ]
    kind = f"The surest of {len(wrong)} mistakes" if len(wrong) else "No mistake"
    title = f"{kind} among {len(evaluation.truth)} images"
    save(grid(images[worst], captions, title), path)


def grid(images, captions, title):
    """A figure with the images in rows, a caption under each."""
    rows, columns = max(1, -(-len(images) // GRID[1])), GRID[1]
    figure = Figure(figsize=(columns * 1.2, rows * 1.5 + 0.4), layout="constrained")
    figure.suptitle(title)
    places = figure.subplots(rows, columns).ravel()
    for axes in places:
        axes.axis("off")
    for axes, image, caption in zip(places, images, captions, strict=False):
        axes.imshow(image, cmap="gray", vmin=0, vmax=255)
        axes.set_title(caption, fontsize=8, y=-0.08, va="top")
    return figure


def save(figure, path):
    """Write the figure as a PNG file at once: a run killed meanwhile leaves the picture before."""
    with atomic_write(path) as partial:
        figure.savefig(partial, dpi=110)


CARD = """\
# Model card: {name}

Predicts the expression of one face: {labels}.
A Keras `Sequential` network ("{network}", {parameters:,} parameters, {megabytes:.1f} MB) that takes
48x48 gray pictures, with pixel values from 0 to 1.

## How good it is

Measured on the **validation** split ({n} images) with this file, loaded as the webcam program loads it. The epoch was
chosen and the temperature ({temperature}) fitted on these same images, so expect a little less on new ones of the same
kind. One run, seed {seed}. The column *votes*, if there is one, is for the network's second output, which predicts the
votes of FER+'s taggers: only the row *FER+ majority* compares it with votes; the other rows compare it with the labels,
which it was not trained to predict. *Calibration error* is the expected calibration error with 15 bins.

{results}

Single view, per class:

{per_class}

Most frequent confusions: {confusions}.

![confusion matrix](confusion_matrix.png)
![curves](curves.png)

## How it was made

{epochs} epochs in {minutes:.0f} minutes on {machine}; epoch {epoch} was saved; batch size {batch_size};
computed in {precision}.
Started from: {start}. Its teachers: {teachers}. {versions}.

Data: {data}, fingerprint `{fingerprint}`.

{counts}

{notes}

FER2013 (Goodfellow et al. 2013, arXiv:1307.0414), where these are its images, is free for research.

## What it must not be used for

An expression is not a feeling: people smile in anger and frown in thought. The labels are what strangers saw in a
picture, and they often disagree. Data collected on the web carries its biases of age, sex, skin colour and culture, and
nobody has measured here how the errors fall on each group. Do not use it to judge, hire, teach, police or diagnose
people. In the European Union, inferring emotions at work and in schools is prohibited (AI Act, Article 5(1)(f)).
"""


def card(facts, data, evaluations, megabytes, history, epoch):
    """The model card, in Markdown. The arguments are those of `write_report`; history: a DataFrame of CSVLogger's file;
    epoch: that of the model, from 1."""
    first = next(iter(evaluations.values()))
    confusion = first.confusion()
    np.fill_diagonal(confusion, 0)
    pairs = sorted(((count, *place) for place, count in np.ndenumerate(confusion) if count), reverse=True)[:4]
    results = pd.DataFrame({name: each.figures() for name, each in evaluations.items()})
    return CARD.format(
        **facts
        | {"labels": ", ".join(facts["labels"]), "teachers": ", ".join(facts["teachers"]) or "none"}
        | {"start": facts["start"] or "random weights", "epoch": epoch},
        megabytes=megabytes,
        n=len(first.truth),
        results=markdown(results),
        per_class=markdown(first.table()),
        confusions=", ".join(f"{first.labels[true]} taken for {first.labels[taken]} ({n})" for n, true, taken in pairs)
        or "none",
        epochs=history["epoch"].max() + 1,
        minutes=history["seconds"].sum() / 60,
        counts=markdown(data.counts()),
        notes="\n".join(f"- {note}" for note in data.notes or ["nothing was dropped"]),
    )


def markdown(table):
    """A DataFrame as a Markdown table, its fractions with three decimals."""

    def text(value):
        return f"{value:.3f}" if isinstance(value, float) else str(value).replace("|", "&#124;")

    rows = [["", *table.columns], ["---"] * (len(table.columns) + 1), *table.astype(object).itertuples()]
    return "\n".join(f"| {' | '.join(map(text, row))} |" for row in rows)
