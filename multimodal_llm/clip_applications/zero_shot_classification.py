r"""Classes without training: an image goes to the label whose text its embedding is nearest to; by any CLIP or SigLIP.

    python -m multimodal_llm.clip_applications.zero_shot_classification classify
    python -m multimodal_llm.clip_applications.zero_shot_classification classify --model openai/clip-vit-base-patch32 \
        --input photos/ --labels "dog,cat,bus" --output classes.csv
    python -m multimodal_llm.clip_applications.zero_shot_classification evaluate --data photos_by_class/

    classifier = ZeroShotClassifier(load_clip("builtin:clip"), ["red circle", "blue star"])
    classifier.classify([image], top_k=2)

CLIP: Radford et al., 2021 (arXiv:2103.00020), whose prompts and ensembles these are; the softmax of s · cos is its own
score. SigLIP: Zhai et al., 2023 (arXiv:2303.15343); each label is a yes or no, sigmoid(s · cos + b), and they need not
sum to 1. Interval of the accuracy: Wilson, 1927. Calibration error: Guo et al., 2017 (arXiv:1706.04599).
"""

from __future__ import annotations

import csv
import functools
import io
import itertools
import json
import logging
import math
import os
import re
import sys
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import NDArray

from multimodal_llm.image_captioning.blip_model import find_images, load_pretrained
from multimodal_llm.visual_question_answering.data_loader import (
    IMAGE_SUFFIXES,
    Skipped,
    files_below,
    open_image,
    why_not,
)
from shared.config import check_range, run_commands
from shared.errors import InputError
from shared.logs import progress_bar
from shared.results import Run, write_atomic
from shared.runtime import set_threads
from shared.sources import resolve

if TYPE_CHECKING:
    from PIL.Image import Image

PROJECT = "multimodal_llm"
MODULE = f"{PROJECT}.clip_applications.zero_shot_classification"
NOT_RECIPE = {"recipe": False}
Vectors = NDArray[np.float32]
Pixels = dict[str, Any]  # name → tensor (1, …): what a model's processor makes of an image
logger = logging.getLogger(MODULE)


# --- The model --------------------------------------------------------------------------------------------------------

MOST_OBLONG = 8  # a strip of 1 × 50,000 pixels would be scaled to 224 × 11,200,000 before its middle is cut out


class ClipEncoder:
    """Embeds images and texts, and scores pairs of them as the model was trained to.

    Args:
        model: Of transformers, with ``get_image_features`` and ``get_text_features``: CLIP, SigLIP, ALIGN and such.
        processor: Its own.
        name: What was resolved.

    Raises:
        InputError: The model is of another kind.
    """

    def __init__(self, model: Any, processor: Any, name: str = "") -> None:
        self.model, self.processor, self.name = model, processor, name
        both = all(hasattr(model, f"get_{kind}_features") for kind in ("image", "text"))
        if not both or not (hasattr(model, "logit_scale") or hasattr(model, "temperature")):
            raise InputError(f"{name or 'The model'} is a {type(model).__name__}, which does not compare images with "
                             "texts.", hint="a CLIP or a SigLIP, such as openai/clip-vit-base-patch32")  # fmt: skip
        self.each_alone = "siglip" in model.config.model_type  # labels are judged one by one, not against each other
        text = model.config.get_text_config()
        most = getattr(text, "max_position_embeddings", 77)
        self.longest = min(most, getattr(processor.tokenizer, "model_max_length", most))  # tokens

    def pixels(self, image: Image) -> Pixels:
        """Return what the model sees of an RGB image, which can then be let go."""
        width, height = image.size
        most = MOST_OBLONG * min(width, height)
        if max(width, height) > most and getattr(self.processor.image_processor, "do_center_crop", False):
            left, top = max(0, (width - most) // 2), max(0, (height - most) // 2)
            image = image.crop((left, top, left + min(width, most), top + min(height, most)))
        return dict(self.processor.image_processor(images=[image], return_tensors="pt"))

    def embed_pixels(self, batch: Sequence[Pixels]) -> Vectors:
        """Return (N, C), of length 1, of what :meth:`pixels` returned, as one batch."""
        import torch

        if not batch:
            return np.zeros((0, self.dimension), np.float32)
        return self._features("image", {key: torch.cat([one[key] for one in batch]) for key in batch[0]})

    def _features(self, kind: str, inputs: dict[str, Any]) -> Vectors:
        import torch

        where, what = self.model.device, self.model.dtype
        moved = {name: t.to(where, what if t.is_floating_point() else None) for name, t in inputs.items()}
        with torch.inference_mode():
            output = getattr(self.model, f"get_{kind}_features")(**moved)
            pooled = output if torch.is_tensor(output) else output.pooler_output  # (B, C)
            normalized = torch.nn.functional.normalize(pooled.float(), dim=-1)
        array: Vectors = normalized.cpu().numpy()
        if not np.isfinite(array).all():
            raise InputError(f"{self.name or 'The model'} gave an embedding that is not finite.",
                             hint="--dtype float32; or the model's files are damaged")  # fmt: skip
        return array

    def embed_images(self, images: Iterable[Any], batch_size: int = 32) -> Vectors:
        """Embed images.

        Args:
            images: What ``data_loader.open_image`` takes; each is opened when its turn comes, and let go at once.
            batch_size: Of the model.

        Returns:
            (N, C), of length 1.

        Raises:
            InputError: One of them can't be opened.
        """
        rows, waiting = [], iter(images)
        while batch := [self.pixels(open_image(image)) for image in itertools.islice(waiting, batch_size)]:
            rows.append(self.embed_pixels(batch))
        return np.concatenate(rows) if rows else self.embed_pixels([])

    def embed_texts(self, texts: Sequence[str], batch_size: int = 256) -> Vectors:
        """Embed texts, cut to as many tokens as the model reads.

        Returns:
            (N, C), of length 1.
        """
        # SigLIP was trained on texts padded to its full length, and pays attention to the padding.
        how = {"padding": "max_length" if self.each_alone else True, "truncation": True, "max_length": self.longest}
        rows = []
        for start in range(0, len(texts), batch_size):
            clean = [text.encode("utf-8", "replace").decode() for text in texts[start : start + batch_size]]
            inputs = self.processor.tokenizer(clean, return_tensors="pt", **how)
            rows.append(self._features("text", dict(inputs)))
        return np.concatenate(rows) if rows else np.zeros((0, self.dimension), np.float32)

    def reads(self, text: str) -> bool:
        """Say whether the tokenizer knows any of a text; of Chinese, one for English has only bytes or unknowns."""
        others = "".join(char for char in text if not char.isascii() and not char.isspace())
        if not others or any(char.isascii() and char.isalnum() for char in text):
            return True
        data = others.encode("utf-8", "replace")
        unknown = (self.processor.tokenizer.unk_token, "▁")
        known = [token for token in self.processor.tokenizer.tokenize(data.decode()) if token not in unknown]
        return 0 < len(known) < len(data)  # a token for each byte is spelled, not read

    @functools.cached_property
    def dimension(self) -> int:
        """C, the length of an embedding."""
        return int(self.embed_texts(["a"]).shape[1])

    def logits(self, images: Vectors, texts: Vectors) -> NDArray[np.float64]:
        """Return the model's own (N, M) of image embeddings (N, C) and text embeddings (M, C): s · cos + b."""
        cosines = images.astype(np.float64) @ texts.T.astype(np.float64)
        if not hasattr(self.model, "logit_scale"):
            return cosines / self.model.temperature.item()
        bias = getattr(self.model, "logit_bias", None)
        return cosines * math.exp(self.model.logit_scale.item()) + (0.0 if bias is None else bias.item())

    def probabilities(self, images: Vectors, texts: Vectors) -> NDArray[np.float64]:
        """Return the model's own scores (N, M): rows that sum to 1; of SigLIP each in (0, 1) alone."""
        logits = self.logits(images, texts)
        if self.each_alone:
            return np.exp(-np.logaddexp(0, -logits))
        powers = np.exp(logits - logits.max(axis=1, keepdims=True))
        return np.asarray(powers / powers.sum(axis=1, keepdims=True))


def load_clip(model: str = "builtin:clip", device: str = "auto", dtype: str = "auto") -> ClipEncoder:
    """Load a model that compares images with texts.

    Args:
        model: ``builtin:clip``, a folder, or a hub id such as ``openai/clip-vit-base-patch32`` or
            ``google/siglip-base-patch16-224``.
        device: ``auto``, ``cpu``, ``cuda`` or ``mps``.
        dtype: ``auto``, ``float32`` or ``bfloat16``.

    Raises:
        InputError: It is a model of another kind, or can't be read.
        HubError: The hub can't be reached.
    """
    loaded, processor, source = load_pretrained(model, "clip", "AutoModel", device, dtype)
    return ClipEncoder(loaded, processor, str(source))


# --- Prompts ----------------------------------------------------------------------------------------------------------

# {} is the label as it stands, {a} with "a" or "an" before it; a label's own article stays, but never after another.
TEMPLATES = {
    "plain": ("{}",),
    "scene": ("{a}", "a picture of {a}", "an image of {a}"),
    "photo": ("a photo of {a}.", "a good photo of {a}.", "a close-up photo of {a}.", "a bright photo of {a}.",
              "a dark photo of {a}.", "a blurry photo of {a}.", "a photo of the {}.", "a drawing of {a}."),
    "zh": ("{}", "一张{}的照片", "{}的图片", "一张清晰的{}的照片", "一张模糊的{}的照片", "{}的特写", "一幅{}的画"),
}  # fmt: skip
HAN = re.compile("[\u3400-\u9fff]")
ARTICLE = re.compile(r"(an?|the)\s+", re.IGNORECASE)


def templates_for(name: str, labels: Sequence[str], model: str = "") -> tuple[str, ...]:
    """Return the prompts that a name stands for.

    Args:
        name: A key of :data:`TEMPLATES`; a file with one prompt a line; a prompt with ``{}`` or ``{a}``; or empty:
            ``zh`` for labels in Chinese, ``scene`` for the embedded model, else ``photo``.
        labels: To be put into them.
        model: That reads them.

    Raises:
        InputError: It is none of these, or a prompt has no place for the label.
    """
    if not name:
        name = "zh" if any(map(HAN.search, labels)) else "scene" if model == "builtin:clip" else "photo"
    if name in TEMPLATES:
        return TEMPLATES[name]
    lines = read_lines(name) if os.path.isfile(name) else [name]
    if wrong := [line for line in lines if "{}" not in line and "{a}" not in line]:
        raise InputError(f"A template must have {{}} or {{a}} where the label goes. Got {wrong[0]!r}.",
                         hint=f"a file with one a line, or one of {', '.join(TEMPLATES)}")  # fmt: skip
    return tuple(lines)


def filled(template: str, label: str) -> str:
    """Put a label into a prompt."""
    own = ARTICLE.match(label)
    bare = label[own.end() :] if own else label
    article = "an" if label[:1].lower() in tuple("aeiou") else "a"
    template = template.replace("{a}", "{}" if own else f"{article} {{}}")
    return re.sub(r"(?i)(\b(?:an?|the) )?\{\}", lambda place: place[1] + bare if place[1] else label, template)


def class_vectors(encoder: ClipEncoder, labels: Sequence[str], templates: Sequence[str]) -> Vectors:
    """Return an embedding for each label: the mean of those of all its prompts, at length 1 again.

    Returns:
        (M, C).
    """
    prompts = [filled(template, label) for label in labels for template in templates]
    means = encoder.embed_texts(prompts).reshape(len(labels), len(templates), -1).mean(axis=1)  # (M, C)
    return np.asarray(means / np.maximum(np.linalg.norm(means, axis=1, keepdims=True), 1e-12))


def unreadable(text: str) -> InputError:
    """Return the error of a text that :meth:`ClipEncoder.reads` nothing of."""
    return InputError(f"The model can't read {text[:80]!r}.",
                      hint="say it in English, or whatever it was trained in; or another --model")  # fmt: skip


def read_lines(name: str) -> list[str]:
    """Read the lines of a text file that are not empty.

    Raises:
        InputError: It is not UTF-8, or holds none.
    """
    try:
        lines = list(filter(None, map(str.strip, Path(name).read_text(encoding="utf-8-sig").split("\n"))))
    except UnicodeDecodeError as error:
        raise InputError(f"{name} is not UTF-8 text: {error}.", hint="convert it, e.g. with iconv") from None
    if not lines:
        raise InputError(f"{name} is empty.")
    return lines


# --- Classes ----------------------------------------------------------------------------------------------------------


class ZeroShotClassifier:
    """Puts images to labels.

    Args:
        encoder: See :func:`load_clip`.
        labels: One at least, no two alike.
        templates: See :func:`templates_for`.

    Attributes:
        unread: Labels in a script that the model can't read; what it says of them means nothing.

    Raises:
        InputError: There is no label, one is empty or comes twice, or the model can read none of them.
    """

    def __init__(self, encoder: ClipEncoder, labels: Sequence[str], templates: str = "") -> None:
        self.encoder, self.labels = encoder, [label.strip() for label in labels]
        if not self.labels or not all(self.labels) or len(set(self.labels)) < len(self.labels):
            raise InputError(f"labels must be different names, one at least. Got {list(labels)!r:.200}.")
        self.unread = [label for label in self.labels if not encoder.reads(label)]
        if len(self.unread) == len(self.labels):
            raise unreadable(self.unread[0])
        if self.unread:
            logger.warning("the model can't read %s: what it says of them means nothing", ", ".join(self.unread))
        self.templates = templates_for(templates, self.labels, encoder.name)
        self.vectors = class_vectors(encoder, self.labels, self.templates)

    def probabilities(self, vectors: Vectors) -> NDArray[np.float64]:
        """Return (N, labels) of image embeddings (N, C); see :meth:`ClipEncoder.probabilities`."""
        return self.encoder.probabilities(vectors, self.vectors)

    def classify(self, images: Iterable[Any], top_k: int = 5) -> list[list[tuple[str, float]]]:
        """Return the likeliest labels of each image with their probabilities, best first."""
        return [self.ranked(row, top_k) for row in self.probabilities(self.encoder.embed_images(images))]

    def ranked(self, row: NDArray[np.float64], top_k: int) -> list[tuple[str, float]]:
        """Return labels and probabilities of one image, best first, ties in the order of the labels."""
        return [(self.labels[i], float(row[i])) for i in np.argsort(-row, kind="stable")[:top_k]]


def embed_readable(
    encoder: ClipEncoder, images: Sequence[Any], skipped: Skipped, batch_size: int = 32, what: str = "embed"
) -> Iterator[tuple[int, NDArray[np.float32]]]:
    """Yield number and embedding of each image that can be opened; the others are counted.

    Args:
        encoder: The model.
        images: What ``data_loader.open_image`` takes.
        skipped: Takes what was left out.
        batch_size: Images in memory at a time.
        what: Name of the progress bar.
    """
    with progress_bar(disable=len(images) <= batch_size) as bar:
        task = bar.add_task(what, total=len(images), figures="")
        for start in range(0, len(images), batch_size):
            opened: list[tuple[int, Pixels]] = []
            for i, image in enumerate(images[start : start + batch_size], start):
                try:
                    opened.append((i, encoder.pixels(open_image(image))))
                except (InputError, OSError) as error:
                    skipped.add("the image can't be opened", why_not(image, error))
            vectors = encoder.embed_pixels([its for _, its in opened])
            yield from ((i, vector) for (i, _), vector in zip(opened, vectors, strict=True))
            figures = f"{skipped.counts.total():,} left out" if skipped.counts else ""
            bar.update(task, advance=min(batch_size, len(images) - start), figures=figures)


# --- How good it is ---------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class ClassReport:
    """How often labels are right; printed, it is a table.

    Attributes:
        labels: M of them.
        truth: (N,) numbers of the right labels.
        probabilities: (N, M).
    """

    labels: Sequence[str]
    truth: NDArray[np.int64]
    probabilities: NDArray[np.float64]

    @property
    def predicted(self) -> NDArray[np.int64]:
        """Numbers of the likeliest labels, (N,)."""
        return self.probabilities.argmax(axis=1)

    @functools.cached_property
    def per_class(self) -> dict[str, tuple[float, float, float, int]]:
        """Label → precision, recall, F1 and how many there are; 0 where there is nothing to divide by."""
        from sklearn.metrics import precision_recall_fscore_support

        columns = precision_recall_fscore_support(
            self.truth, self.predicted, labels=range(len(self.labels)), zero_division=0.0
        )
        rows = zip(*columns, strict=True)
        return {label: (float(p), float(r), float(f), int(n))
                for label, (p, r, f, n) in zip(self.labels, rows, strict=True)}  # fmt: skip

    @property
    def confusion(self) -> NDArray[np.int64]:
        """Counts (M, M), rows the truth and columns the prediction."""
        from sklearn.metrics import confusion_matrix

        return np.asarray(confusion_matrix(self.truth, self.predicted, labels=range(len(self.labels))))

    def metrics(self) -> dict[str, float]:
        """Return accuracy with its 95 % interval, top 5, macro-F1 over the labels that are there, calibration error."""
        right = self.predicted == self.truth
        low, high = wilson_interval(int(right.sum()), len(right))
        own = self.probabilities[np.arange(len(right)), self.truth]
        in_five = (self.probabilities > own[:, None]).sum(axis=1) < 5
        there = [f1 for *_, f1, support in self.per_class.values() if support]
        figures = {"accuracy": float(right.mean()), "accuracy low": low, "accuracy high": high,
                   "top-5 accuracy": float(in_five.mean()), "macro-F1": float(np.mean(there)),
                   "calibration error": calibration_error(self.probabilities.max(axis=1), right)}  # fmt: skip
        return figures | {"images": len(right), "classes": len(self.labels)}

    def __str__(self) -> str:
        width = max(12, *map(len, self.labels))
        lines = [f"{'class':{width}} {'precision':>9} {'recall':>9} {'F1':>9} {'images':>8}"]
        for label, (precision, recall, f1, support) in self.per_class.items():
            figures = [f"{value:9.4f}" if support else f"{'–':>9}" for value in (precision, recall, f1)]
            lines.append(f"{label:{width}} {' '.join(figures)} {support:8,}")
        found = self.metrics()
        lines.append(f"accuracy {found['accuracy']:.4f} [{found['accuracy low']:.4f}, {found['accuracy high']:.4f}], "
                     f"top 5 {found['top-5 accuracy']:.4f}, macro-F1 {found['macro-F1']:.4f}, calibration error "
                     f"{found['calibration error']:.4f}")  # fmt: skip
        return "\n".join(lines)

    def plot(self, path: Path, title: str = "") -> None:
        """Draw the confusion matrix as PNG, each row as parts of its class."""
        from shared.plots import drawing

        counts, many = self.confusion, len(self.labels)
        shares = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
        side = min(4 + 0.28 * many, 24)
        with drawing(path, side + 1, side) as figure:
            axes = figure.add_subplot()
            drawn = axes.imshow(shares, cmap="Blues", vmin=0, vmax=1)
            axes.set(xlabel="predicted", ylabel="true", xticks=range(many), yticks=range(many))
            size = max(3, min(9, 240 / many))
            names = [label.encode("utf-8", "backslashreplace").decode() for label in self.labels]
            axes.set_xticklabels(names, rotation=90, fontsize=size, parse_math=False)
            axes.set_yticklabels(names, fontsize=size, parse_math=False)
            axes.set_title(title, parse_math=False)
            for row, column in zip(*counts.nonzero(), strict=True) if many <= 30 else ():
                color = "white" if shares[row, column] > 0.5 else "black"
                axes.text(column, row, counts[row, column], ha="center", va="center", fontsize=size, color=color)
            figure.colorbar(drawn, ax=axes, label="part of the class")


def wilson_interval(right: int, count: int, z: float = 1.96) -> tuple[float, float]:
    """Return Wilson's interval of a share, 95 % by default; it stays in [0, 1] where all or none are right."""
    if not count:
        return 0.0, 1.0
    share, spread = right / count, z * z / count
    middle = (share + spread / 2) / (1 + spread)
    half = z / (1 + spread) * math.sqrt(share * (1 - share) / count + spread / (4 * count))
    return max(0.0, middle - half), min(1.0, middle + half)


def calibration_error(confidence: NDArray[np.float64], right: NDArray[np.bool_], bins: int = 10) -> float:
    """Return the expected calibration error: |accuracy − confidence| of equal bins of confidence, weighted by size."""
    places = np.minimum((confidence * bins).astype(int), bins - 1)
    gaps = np.bincount(places, weights=right - confidence, minlength=bins)
    return float(np.abs(gaps).sum() / max(1, len(right)))


# --- Data -------------------------------------------------------------------------------------------------------------


def single_scenes(count: int, seed: int = 0, split: str = "test") -> list[Any]:
    """Draw builtin scenes of one object, each a ``scenes.SceneImage``; no scene of the training says the same."""
    from multimodal_llm.builtin import scenes

    drawn = itertools.chain.from_iterable(scenes.scenes(split, 1000, seed + i) for i in itertools.count())  # type: ignore[arg-type]
    return [scenes.SceneImage(one) for one in itertools.islice((s for s in drawn if len(s.objects) == 1), count)]


def scene_labels(part: Literal["shape", "color", "both"]) -> dict[str, str]:
    """Return shape, color, or color and shape, as the scenes have them → the label to ask for."""
    from multimodal_llm.builtin.scenes import COLORS, SHAPES

    if part == "color":
        return {color: f"{color} object" for color in COLORS}
    names = SHAPES if part == "shape" else [f"{color} {shape}" for color in COLORS for shape in SHAPES]
    return {name: name for name in names}


def scene_reports(
    encoder: ClipEncoder, count: int = 500, seed: int = 0, templates: str = "", batch_size: int = 32
) -> dict[str, ClassReport]:
    """Classify builtin scenes of one object by shape and by color, each without the other being said.

    Returns:
        ``shape`` and ``color`` → report.
    """
    images = single_scenes(count, seed)
    vectors = encoder.embed_images(images, batch_size)
    reports = {}
    for part in ("shape", "color"):
        labels = scene_labels(part)  # type: ignore[arg-type]
        classifier = ZeroShotClassifier(encoder, list(labels.values()), templates)
        truth = np.array([list(labels).index(getattr(one.scene.objects[0], part)) for one in images])
        reports[part] = ClassReport(classifier.labels, truth, classifier.probabilities(vectors))
    return reports


def scene_accuracy(encoder: ClipEncoder, count: int = 500, seed: int = 0) -> dict[str, float]:
    """Return ``shape_accuracy`` and ``color_accuracy`` on builtin scenes of one object."""
    reports = scene_reports(encoder, count, seed)
    return {f"{part}_accuracy": report.metrics()["accuracy"] for part, report in reports.items()}


def read_class_folders(folder: Path) -> tuple[list[str], list[Path], list[int]]:
    """Read a folder with a folder of images for each class; a class's name may have ``_`` for blanks.

    Returns:
        Labels; image files; and the number of the label of each.

    Raises:
        InputError: There are no such folders, or no images in them.
        FileNotFoundError: There is no such folder.
    """
    if not folder.is_dir():
        raise FileNotFoundError(f"No such folder: {str(folder)!r}.")
    labels, paths, truth = [], [], []
    for inside in sorted(path for path in folder.iterdir() if path.is_dir() and not path.name.startswith(".")):
        its = sorted(map(Path, files_below(inside, IMAGE_SUFFIXES)))
        if not its:
            logger.warning("%s holds no images, and is no class", inside)
            continue
        truth += [len(labels)] * len(its)
        labels.append(inside.name.replace("_", " "))
        paths += its
    if not labels:
        raise InputError(f"There is no class in {folder}.", hint="a folder for each class, named as it, with images")
    return labels, paths, truth


# --- Commands ---------------------------------------------------------------------------------------------------------


@dataclass
class ModelConfig:
    """Which model compares images with texts, and how."""

    model: str = "builtin:clip"
    """builtin:clip, a folder, or a hub id such as openai/clip-vit-base-patch32 or google/siglip-base-patch16-224."""
    templates: str = ""
    """Prompts: plain, scene, photo or zh; a file with one a line; or one prompt with {} or {a} where the label goes.
    By default scene for the embedded model, zh for labels in Chinese, else photo."""
    batch_size: int = field(default=32, metadata=NOT_RECIPE)
    """Images embedded at a time."""
    device: str = field(default="auto", metadata=NOT_RECIPE)
    """auto, cpu, cuda or mps."""
    dtype: Literal["auto", "float32", "bfloat16"] = "auto"
    """What to compute in."""
    threads: int = field(default=0, metadata=NOT_RECIPE)
    """CPU threads; 0 leaves it to PyTorch."""
    seed: int = field(default=0, metadata=NOT_RECIPE)
    """Of the scenes."""
    run: str = field(default="", metadata=NOT_RECIPE)
    """Name of the run's folder; by default the time."""

    def __post_init__(self) -> None:
        """Check the ranges."""
        check_range("batch_size", self.batch_size, 1, 4096)
        check_range("threads", self.threads, 0)

    def encoder(self) -> ClipEncoder:
        """Load the model."""
        set_threads(self.threads)
        return load_clip(self.model, self.device, self.dtype)


@dataclass
class ClassifyConfig(ModelConfig):
    """Put images to labels of your own."""

    input: list[str] = field(default_factory=list)
    """Files and folders; by default eight scenes of one object are drawn."""
    labels: str = ""
    """Labels by commas, or a text file with one a line; for scenes every color and shape by default."""
    top_k: int = 3
    """Labels that are shown of each image."""
    output: str = field(default="", metadata=NOT_RECIPE)
    """A .csv or .jsonl file; by default classes.jsonl in the run's folder."""

    def __post_init__(self) -> None:
        """Check that labels come with images."""
        super().__post_init__()
        check_range("top_k", self.top_k, 1)
        if self.input and not self.labels:
            raise InputError("labels must not be empty.", hint='--labels "dog,cat,bus", or a file with one a line')
        if self.output and Path(self.output).suffix not in (".csv", ".jsonl"):
            raise InputError(f"output must end with .csv or .jsonl. Got {self.output!r}.")


def classify(config: ClassifyConfig) -> None:
    """Classify images; see :class:`ClassifyConfig`."""
    if config.labels:
        labels = read_lines(config.labels) if os.path.isfile(config.labels) else config.labels.split(",")
        labels = list(dict.fromkeys(filter(None, map(str.strip, labels))))
    else:
        labels = list(scene_labels("both"))
    images: list[Any] = list(find_images(config.input)) if config.input else single_scenes(8, config.seed)
    classifier = ZeroShotClassifier(config.encoder(), labels, config.templates)
    run = Run(PROJECT, MODULE, "classify", config, name=config.run)
    skipped, rows = Skipped(), []
    for i, vector in embed_readable(classifier.encoder, images, skipped, config.batch_size, "classify"):
        ranked = classifier.ranked(classifier.probabilities(vector[None])[0], config.top_k)
        rows.append({"image": str(images[i]), "label": ranked[0][0], "probability": round(ranked[0][1], 6),
                     "ranked": [[label, round(value, 6)] for label, value in ranked]})  # fmt: skip
    for row in rows[:50]:
        sys.stdout.write(f"{row['image']}: {', '.join(f'{label} {value:.3f}' for label, value in row['ranked'])}\n")
    if len(rows) > 50:
        sys.stdout.write(f"… and {len(rows) - 50:,} more\n")
    for line in filter(None, str(skipped).split("\n")):
        logger.warning("%s", line)
    path = Path(config.output) if config.output else run.folder / "classes.jsonl"
    write_atomic(path, _csv(rows, config.top_k) if path.suffix == ".csv" else
                 "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))  # fmt: skip
    metrics = {"images": len(rows), "left out": skipped.counts.total(), "labels": len(classifier.labels)}
    if rows:
        metrics["mean probability"] = float(np.mean([row["probability"] for row in rows]))
    data = ", ".join(config.input) or "builtin:scenes"
    run.finish(model=classifier.encoder.name, data=data, seed=config.seed, metrics=metrics)
    logger.info("saved %s", path)
    if not rows:
        raise InputError("None of the images could be opened.")


def _csv(rows: Sequence[dict[str, Any]], top_k: int) -> str:
    file = io.StringIO()
    writer = csv.writer(file)
    most = max((len(row["ranked"]) for row in rows), default=0)
    writer.writerow(
        ["image", *(f"{what} {n}" for n in range(1, min(top_k, most) + 1) for what in ("label", "probability"))]
    )
    writer.writerows([row["image"], *itertools.chain(*row["ranked"])] for row in rows)
    return file.getvalue()


@dataclass
class EvaluateConfig(ModelConfig):
    """Measure how often the likeliest label is the right one, class by class."""

    data: str = "builtin:scenes"
    """builtin:scenes (one object each, by shape and by color), or a folder with a folder of images for each class."""
    count: int = 500
    """Scenes, 1 to 100,000."""

    def __post_init__(self) -> None:
        """Check the ranges."""
        super().__post_init__()
        check_range("count", self.count, 1, 100_000)


def evaluate(config: EvaluateConfig) -> None:
    """Measure; see :class:`EvaluateConfig`."""
    source, skipped = resolve(config.data, ["scenes"]), Skipped()
    reports: dict[str, ClassReport]
    if source.origin == "hub":
        raise InputError("data must be a folder here, with a folder of images for each class.")
    if source.origin == "builtin":
        encoder = config.encoder()
        reports = scene_reports(encoder, config.count, config.seed, config.templates, config.batch_size)
    else:
        labels, paths, its = read_class_folders(Path(source.name))
        encoder = config.encoder()
        classifier = ZeroShotClassifier(encoder, labels, config.templates)
        kept = list(embed_readable(encoder, paths, skipped, config.batch_size, "evaluate"))
        if not kept:
            raise InputError(f"None of the images in {source} could be opened.")
        found = classifier.probabilities(np.stack([vector for _, vector in kept]))
        reports = {"": ClassReport(labels, np.array([its[i] for i, _ in kept]), found)}
    run = Run(PROJECT, MODULE, "evaluate", config, name=config.run)
    metrics: dict[str, Any] = {}
    for part, report in reports.items():
        sys.stdout.write(f"{part}\n{report}\n\n" if part else f"{report}\n")
        name = f"{part}_" if part else ""
        metrics |= {f"{name}{figure}": value for figure, value in report.metrics().items()}
        metrics |= {f"{name}F1 {label}": f1 for label, (_, _, f1, n) in report.per_class.items() if n}
        report.plot(run.folder / f"{name}confusion.png", f"{encoder.name}, accuracy {report.metrics()['accuracy']:.4f}")
    for line in filter(None, str(skipped).split("\n")):
        logger.warning("%s", line)
    run.finish(model=encoder.name, data=str(source), seed=config.seed,
               metrics=metrics | {"left out": skipped.counts.total()})  # fmt: skip
    logger.info("saved in %s", run.folder)


if __name__ == "__main__":
    run_commands({"classify": classify, "evaluate": evaluate}, module=MODULE, extra="multimodal")
