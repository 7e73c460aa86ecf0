"""From PyTorch to a bundle: one folder with all that serving needs, and nothing of PyTorch.

    python -m model_optimization.deployment.onnx_conversion convert --model builtin:minilm-stays --bundle my-bundle
    python -m model_optimization.deployment.onnx_conversion predict --bundle my-bundle --text "The bed was cold."

A bundle is ``model.onnx`` (two inputs: ``input_ids`` and ``attention_mask``, (B, T) int64; two outputs: ``logits``
(B, number of labels) and ``sentence_embedding`` (B, C), the mean of the last hidden states, for drift detection),
``tokenizer.json`` and ``bundle.json``: label names, longest text, where it came from, what was done to it, and the
sha256 of the other two. Reading one needs ``onnxruntime`` and ``tokenizers`` alone.
"""

from __future__ import annotations

import hashlib
import json
import logging
import sys
import tempfile
import warnings
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from shared.config import check_range, run_commands
from shared.errors import InputError
from shared.results import write_atomic

if TYPE_CHECKING:
    from model_optimization.builtin.subject import Data, Subject

MODULE = "model_optimization.deployment.onnx_conversion"
PROJECT = "model_optimization"
MODEL, TOKENIZER, CARD = "model.onnx", "tokenizer.json", "bundle.json"
PARITY = 1e-3  # largest difference of a logit between PyTorch and ONNX Runtime, both in float32
ODD_SHAPES = ((1, 1), (1, 2), (3, 7), (5, 33), (2, 128))  # (B, T); a graph with a constant in it fails on some
# It joins a sum and a layer norm in one operator, which takes seven times as long on a CPU (onnxruntime 1.32)
SLOW_FUSION = "SkipLayerNormFusion"
Vectors = NDArray[np.float32]
logger = logging.getLogger(MODULE)


# --- Reading: numpy, onnxruntime and tokenizers -----------------------------------------------------------------------


@dataclass(frozen=True)
class Card:
    """What a bundle says of itself.

    Attributes:
        label_names: The classes in the order of the logits.
        max_length: Most tokens of a text that are read, special ones with them.
        base: The model it came from, as it was resolved.
        techniques: What was done to it, in order.
        accuracy: Measured on ``data``'s test split when it was made; None where it was not.
        data: What it was measured on.
        sha256: File name → hash of ``model.onnx`` and ``tokenizer.json``.
    """

    label_names: list[str]
    max_length: int
    base: str = ""
    techniques: list[str] = field(default_factory=list)
    accuracy: float | None = None
    data: str = ""
    sha256: dict[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Check what is needed to serve."""
        names = self.label_names
        if not (isinstance(names, list) and len(names) > 1 and all(isinstance(name, str) for name in names)):
            raise InputError(f"label_names must be two or more texts. Got {names!r}.")
        if len(set(names)) < len(names):
            raise InputError(f"label_names must differ. Got {names!r}.")
        if type(self.max_length) is not int or self.max_length < 3:
            raise InputError(f"max_length must be a whole number >= 3. Got {self.max_length!r}.")


@dataclass(frozen=True)
class Prediction:
    """What a model makes of one text."""

    label: str
    probability: float
    """Of the label, in (0, 1]."""
    probabilities: dict[str, float]
    """Label → probability; they add up to 1."""
    tokens: int
    """Read of the text, special ones with them."""
    truncated: bool
    """Whether the text was longer than the model reads."""


class TextEncoder:
    """Texts → token ids, cut at the model's limit; safe to use from several threads.

    Args:
        tokenizer_json: The content of a ``tokenizer.json``.
        max_length: Most tokens, special ones with them.

    Raises:
        InputError: It is no tokenizer.
    """

    def __init__(self, tokenizer_json: str, max_length: int) -> None:
        from tokenizers import Tokenizer

        try:
            self.tokenizer = Tokenizer.from_str(tokenizer_json)
        except Exception as error:  # the library raises nothing more special
            raise InputError(f"{TOKENIZER} is damaged, or no tokenizer: {str(error)[:200]}.") from None
        self.tokenizer.no_padding()
        self.tokenizer.enable_truncation(max_length)
        self.max_length = max_length
        self.vocabulary = self.tokenizer.get_vocab_size()

    def encode(self, texts: Sequence[str]) -> list[list[int]]:
        """Return the ids of each text; one whose length is ``max_length`` may have been cut."""
        clean = [text.encode("utf-8", "replace").decode() for text in texts]  # lone surrogates have no bytes
        return [encoding.ids for encoding in self.tokenizer.encode_batch(clean, add_special_tokens=True)]


def pad(ids: Sequence[Sequence[int]]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Return ``input_ids`` and ``attention_mask``, (B, longest); what is padded is masked, so any id does for it."""
    lengths = [len(row) for row in ids]
    input_ids = np.zeros((len(ids), max(lengths)), dtype=np.int64)
    attention_mask = np.zeros_like(input_ids)
    for i, row in enumerate(ids):
        input_ids[i, : len(row)] = row
        attention_mask[i, : len(row)] = 1
    return input_ids, attention_mask


def softmax(logits: NDArray[Any]) -> NDArray[np.float64]:
    """Return probabilities over the last axis."""
    exponents = np.exp(logits.astype(np.float64) - logits.max(-1, keepdims=True))
    return exponents / exponents.sum(-1, keepdims=True)


def length_batches(lengths: Sequence[int], batch_size: int) -> Iterator[list[int]]:
    """Yield the indices of texts of like length together, so that little is computed on padding."""
    order = sorted(range(len(lengths)), key=lambda i: lengths[i])
    for first in range(0, len(order), batch_size):
        yield order[first : first + batch_size]


class Classifier(ABC):
    """What PyTorch models and bundles have in common: texts → ids → logits and embeddings → labels.

    Attributes:
        encoder: Texts → ids.
        label_names: The classes in the order of the logits.
        name: What it is, for tables and logs.
    """

    encoder: TextEncoder
    label_names: list[str]
    name: str

    @abstractmethod
    def run(self, ids: Sequence[Sequence[int]]) -> tuple[Vectors, Vectors]:
        """Compute one batch: B lists of ids → logits (B, labels) and embeddings (B, C)."""

    def logits(self, texts: Sequence[str], batch_size: int = 32) -> Vectors:
        """Compute the logits of any number of texts, (N, labels)."""
        return self.outputs(texts, batch_size)[0]

    def outputs(self, texts: Sequence[str], batch_size: int = 32) -> tuple[Vectors, Vectors]:
        """Compute the logits (N, labels) and embeddings (N, C) of any number of texts.

        Raises:
            InputError: There is no text.
        """
        if not texts:
            raise InputError("There is no text to classify.")
        ids = self.encoder.encode(texts)
        logits, embeddings = None, None
        for rows in length_batches([len(row) for row in ids], batch_size):
            some_logits, some_embeddings = self.run([ids[i] for i in rows])
            if logits is None or embeddings is None:
                logits = np.empty((len(ids), some_logits.shape[1]), dtype=np.float32)
                embeddings = np.empty((len(ids), some_embeddings.shape[1]), dtype=np.float32)
            logits[rows], embeddings[rows] = some_logits, some_embeddings
        assert logits is not None and embeddings is not None
        return logits, embeddings

    def predict(self, texts: Sequence[str], batch_size: int = 32) -> list[Prediction]:
        """Label any number of texts."""
        lengths = [len(row) for row in self.encoder.encode(texts)]
        return [
            prediction(row, length, self.label_names, self.encoder.max_length)
            for row, length in zip(softmax(self.logits(texts, batch_size)), lengths, strict=True)
        ]


def prediction(probabilities: NDArray[Any], tokens: int, label_names: Sequence[str], max_length: int) -> Prediction:
    """Build the prediction of one text from its probabilities, (labels,)."""
    best = int(probabilities.argmax())
    by_label = {name: round(float(p), 6) for name, p in zip(label_names, probabilities, strict=True)}
    return Prediction(label_names[best], by_label[label_names[best]], by_label, tokens, tokens >= max_length)


class OnnxClassifier(Classifier):
    """A bundle, loaded; safe to use from several threads.

    Args:
        folder: The bundle.
        threads: CPU threads for one batch; 0 is all cores. In a container say how many: the host's are counted.

    Attributes:
        card: What the bundle says of itself.
        version: The first 12 digits of the model's hash.

    Raises:
        FileNotFoundError: A file of the bundle is missing.
        InputError: A file is damaged or was changed, or model, tokenizer and label names don't belong together.
    """

    def __init__(self, folder: str | Path, threads: int = 1) -> None:
        import onnxruntime

        check_range("threads", threads, 0)
        self.folder = Path(folder)
        self.card = read_card(self.folder)
        content = {name: _read(self.folder / name) for name in (MODEL, TOKENIZER)}
        for name, data in content.items():
            if self.card.sha256.get(name) != hashlib.sha256(data).hexdigest():
                raise InputError(
                    f"{self.folder / name} is not the file that {CARD} was written for.", hint="make the bundle anew"
                )
        self.version = self.card.sha256[MODEL][:12]
        self.name = self.folder.name
        self.label_names = self.card.label_names
        self.encoder = TextEncoder(content[TOKENIZER].decode("utf-8", "replace"), self.card.max_length)
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        options.log_severity_level = 3
        try:
            self.session = onnxruntime.InferenceSession(
                content[MODEL], options, providers=["CPUExecutionProvider"], disabled_optimizers=[SLOW_FUSION]
            )
        except Exception as error:  # onnxruntime's errors share no base but this
            raise InputError(f"{self.folder / MODEL} is no ONNX model: {_one_line(error)}.") from None
        inputs = {node.name for node in self.session.get_inputs()}
        outputs = [node.name for node in self.session.get_outputs()]
        if inputs != {"input_ids", "attention_mask"} or outputs != ["logits", "sentence_embedding"]:
            raise InputError(
                f"{self.folder / MODEL} must take input_ids and attention_mask and give logits and sentence_embedding. "
                f"It takes {', '.join(sorted(inputs))} and gives {', '.join(outputs)}."
            )
        self._try_out()

    def _try_out(self) -> None:
        """Find out whether labels and vocabulary fit, before a client does."""
        try:
            logits, _ = self.run([[0], [self.encoder.vocabulary - 1, 0]])
        except Exception as error:
            raise InputError(
                f"{self.folder / MODEL} fails on the ids of its {TOKENIZER}, which has {self.encoder.vocabulary:,} "
                f"tokens: {_one_line(error)}.", hint="a tokenizer of another model? make the bundle anew"
            ) from None  # fmt: skip
        if logits.shape[1] != len(self.label_names):
            names = ", ".join(self.label_names)
            raise InputError(f"{self.folder / MODEL} gives {logits.shape[1]} logits, but {CARD} names {names}.")

    def run(self, ids: Sequence[Sequence[int]]) -> tuple[Vectors, Vectors]:
        """Compute one batch; see :meth:`Classifier.run`."""
        input_ids, attention_mask = pad(ids)
        feeds = {"input_ids": input_ids, "attention_mask": attention_mask}
        logits, embedding = self.session.run(["logits", "sentence_embedding"], feeds)
        return logits, embedding


def read_card(folder: Path) -> Card:
    """Read ``bundle.json``.

    Raises:
        FileNotFoundError: There is no bundle.
        InputError: It is damaged.
    """
    if not (folder / CARD).is_file():
        raise FileNotFoundError(f"{str(folder)!r} is no bundle: it has no {CARD}.")
    try:
        values = json.loads((folder / CARD).read_text(encoding="utf-8"))
        return Card(**values)
    except (ValueError, TypeError, RecursionError) as error:
        reason = error.args[0] if error.args else error
        raise InputError(f"{folder / CARD} is damaged: {str(reason).rstrip('.')}.") from None


def write_bundle(folder: Path, model: bytes, tokenizer_json: str, card: Card) -> Card:
    """Write a bundle; ``bundle.json`` last, so that one cut short is told by its hashes.

    Returns:
        The card with the hashes.
    """
    content = {MODEL: model, TOKENIZER: tokenizer_json.encode()}
    card = replace(card, sha256={name: hashlib.sha256(data).hexdigest() for name, data in content.items()})
    for name, data in content.items():
        write_atomic(folder / name, data)
    write_atomic(folder / CARD, json.dumps(asdict(card), indent=2, ensure_ascii=False) + "\n")
    return card


def megabytes(folder: Path) -> float:
    """Return the size of a bundle's model, in MB of a million bytes."""
    return (folder / MODEL).stat().st_size / 1e6


def _read(path: Path) -> bytes:
    if not path.is_file():
        raise FileNotFoundError(f"The bundle {str(path.parent)!r} has no {path.name}.")
    return path.read_bytes()


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())[:200].rstrip(".")


# --- Writing: PyTorch -------------------------------------------------------------------------------------------------


def export_graph(model: Any, max_length: int) -> bytes:
    """Trace a classifier into an ONNX graph whose batch and length are free.

    Args:
        model: Any ``AutoModelForSequenceClassification``.
        max_length: Longest input.

    Returns:
        The serialized graph, with the outputs ``logits`` and ``sentence_embedding``.

    Raises:
        InputError: PyTorch can't export this model.
    """
    import torch

    class Graph(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.model = model

        def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
            outputs = self.model(input_ids=input_ids, attention_mask=attention_mask, output_hidden_states=True)
            weights = attention_mask.unsqueeze(-1).float()  # (B, T, 1)
            embedding = (outputs.hidden_states[-1] * weights).sum(1) / weights.sum(1).clamp(min=1)
            return outputs.logits, embedding

    mask = torch.ones(2, 7, dtype=torch.long)
    mask[1, 4:] = 0
    shape = {0: torch.export.Dim("batch"), 1: torch.export.Dim("tokens", max=max_length)}
    training = model.training
    implementation = getattr(model.config, "_attn_implementation", None)
    if implementation == "sdpa":
        model.set_attn_implementation("eager")  # the fused one has a longer graph, which nothing fuses again
    registration = logging.getLogger("torch.onnx._internal.exporter._registration")
    level = registration.level
    registration.setLevel(logging.ERROR)  # it misses torchvision, which nothing here needs
    with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of names of axes, and of what PyTorch itself deprecates
        path = Path(folder) / MODEL
        try:
            program = torch.onnx.export(
                Graph().eval(), (torch.ones_like(mask), mask), dynamo=True, verbose=False,
                input_names=["input_ids", "attention_mask"], output_names=["logits", "sentence_embedding"],
                dynamic_shapes={"input_ids": shape, "attention_mask": shape},
            )  # fmt: skip
        except torch.onnx.errors.OnnxExporterError as error:
            raise InputError(f"{type(model).__name__} can't be exported to ONNX: {_one_line(error)}.") from error
        finally:
            registration.setLevel(level)
            model.train(training)
            if implementation == "sdpa":
                model.set_attn_implementation(implementation)
        program.save(path, external_data=False)
        return path.read_bytes()


def convert(
    subject: Subject, folder: Path, *, techniques: Sequence[str] = (), data: Data | None = None
) -> OnnxClassifier:
    """Write a bundle of a PyTorch classifier, and hold it against the original at odd shapes.

    Args:
        subject: The classifier.
        folder: Of the bundle.
        techniques: What was done to the model so far, for the card.
        data: Its test split is measured for the card; None leaves it out.

    Raises:
        InputError: PyTorch can't export the model, or the bundle gives other logits.
    """
    card = Card(
        subject.label_names, subject.max_length, base=subject.name, techniques=list(techniques) or ["float32"],
        data=data.name if data else "",
    )  # fmt: skip
    write_bundle(folder, optimize_graph(export_graph(subject.model, subject.max_length)), subject.tokenizer_json, card)
    bundle = OnnxClassifier(folder)
    worst = parity(subject, bundle)
    if not worst <= PARITY:
        raise InputError(f"{folder}: the logits of ONNX Runtime and PyTorch differ by {worst:.2g}, more than {PARITY}.")
    logger.info("%s: logits differ from PyTorch's by %.1e at most", folder, worst)
    return measured(bundle, data)


def optimize_graph(model: bytes) -> bytes:
    """Fold constants and infer shapes, which quantization builds on."""
    from onnxruntime.quantization.shape_inference import quant_pre_process

    with tempfile.TemporaryDirectory() as folder:
        before, after = Path(folder) / "before.onnx", Path(folder) / "after.onnx"
        before.write_bytes(model)
        # "Incomplete symbolic shape inference" otherwise; PyTorch has already written the shapes down
        quant_pre_process(before, after, skip_symbolic_shape=True)
        return after.read_bytes()


def parity(one: Classifier, other: Classifier, shapes: Sequence[tuple[int, int]] = ODD_SHAPES) -> float:
    """Return the largest difference of a logit on random ids, at batch sizes and lengths that are no round numbers."""
    rng = np.random.default_rng(0)
    worst = 0.0
    for batch, tokens in shapes:
        tokens = min(tokens, one.encoder.max_length)
        ids = [rng.integers(one.encoder.vocabulary, size=max(1, tokens - i % 3)).tolist() for i in range(batch)]
        worst = max(worst, float(np.abs(one.run(ids)[0] - other.run(ids)[0]).max()))
    return worst


def measured(bundle: OnnxClassifier, data: Data | None) -> OnnxClassifier:
    """Write a bundle's accuracy on a test split into its card; returns the bundle, loaded anew."""
    if data is None:
        return bundle
    if bundle.label_names != data.label_names:
        raise InputError(
            f"{bundle.folder} tells {', '.join(bundle.label_names)} apart, but {data.name} has "
            f"{', '.join(data.label_names)}."
        )
    right = bundle.logits(data.texts("test")).argmax(1) == data.labels("test")
    card = replace(bundle.card, accuracy=round(float(right.mean()), 6), data=data.name)
    write_atomic(bundle.folder / CARD, json.dumps(asdict(card), indent=2, ensure_ascii=False) + "\n")
    bundle.card = card
    return bundle


class GateError(InputError):
    """A compressed model answers too differently from the one it came from."""


def gate(
    before: Classifier, after: Classifier, data: Data, *, most_loss: float = 0.01, least_agreement: float = 0.0
) -> dict[str, float]:
    """Hold a compressed classifier against its original, on a test split.

    Args:
        before: The original.
        after: The compressed one.
        data: Texts and labels.
        most_loss: Accuracy that may be lost.
        least_agreement: Share of texts that must keep their label.

    Returns:
        ``accuracy``, ``loss`` (of accuracy; negative is a gain) and ``agreement``.

    Raises:
        GateError: It loses more, or agrees less.
    """
    if before.label_names != after.label_names:
        raise GateError(f"The labels changed from {before.label_names} to {after.label_names}.")
    texts, labels = data.texts("test"), data.labels("test")
    old, new = before.logits(texts).argmax(1), after.logits(texts).argmax(1)
    figures = {
        "accuracy": float((new == labels).mean()),
        "loss": float((old == labels).mean() - (new == labels).mean()),
        "agreement": float((old == new).mean()),
    }
    if figures["loss"] > most_loss or figures["agreement"] < least_agreement:
        raise GateError(
            f"{after.name} loses {figures['loss']:.4f} of accuracy ({most_loss} is allowed) and agrees in "
            f"{figures['agreement']:.2%} of all texts ({least_agreement:.0%} is wanted)."
        )
    return figures


def build(
    make: Callable[[Path], OnnxClassifier], folder: Path, before: Classifier, data: Data, most_loss: float
) -> tuple[OnnxClassifier, dict[str, float]]:
    """Make a bundle beside its place, and put it there only if the gate lets it through.

    Args:
        make: Folder → the bundle in it.
        folder: Its place; a bundle that lies there is replaced.
        before: What it is held against.
        data: See :func:`gate`.
        most_loss: See :func:`gate`.

    Returns:
        The bundle in its place, and the figures of the gate.

    Raises:
        GateError: See :func:`gate`; then what lay in the folder is there as before.
        InputError: ``before`` itself lies there.
    """
    check_other(before, folder)
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent, prefix=f".{folder.name}.") as place:
        made = make(Path(place) / folder.name)
        figures = gate(before, made, data, most_loss=most_loss)
        folder.mkdir(exist_ok=True)
        for name in (MODEL, TOKENIZER, CARD):  # the card last, as in write_bundle
            (made.folder / name).replace(folder / name)
    return OnnxClassifier(folder), figures


def check_other(source: Classifier, folder: Path) -> None:
    """Raise an :class:`InputError` where a bundle would be written over by what is made of it."""
    if isinstance(source, OnnxClassifier) and folder.resolve() == source.folder.resolve():
        raise InputError(f"{folder} would be written over.", hint="another --output")


# --- Commands ---------------------------------------------------------------------------------------------------------


@dataclass
class ConvertConfig:
    """Write a bundle of a classifier."""

    model: str = "builtin:minilm-stays"
    """The classifier: builtin:minilm-stays, a folder or a hub id."""
    bundle: str = "outputs/model_optimization/bundles/float32"
    """The bundle's folder."""
    data: str = ""
    """Measure accuracy on this data set's test split: builtin:stays, a folder or a hub id; empty leaves it out."""
    max_length: int = 128
    """Most tokens of a text that are read, in [3, 8192]."""

    def __post_init__(self) -> None:
        """Check the ranges."""
        check_range("max_length", self.max_length, 3, 8192)


@dataclass
class PredictConfig:
    """Label texts with a bundle; PyTorch is not needed for it."""

    bundle: str = "outputs/model_optimization/bundles/float32"
    """The bundle's folder."""
    text: str = ""
    """The text; by default each line of standard input is one."""
    threads: int = 1
    """CPU threads; 0 is all cores."""


def convert_command(config: ConvertConfig) -> None:
    """Convert, and say what came of it."""
    from model_optimization.builtin.subject import load_data, load_subject

    data = load_data(config.data) if config.data else None
    bundle = convert(load_subject(config.model, config.max_length), Path(config.bundle), data=data)
    sys.stdout.write(describe(bundle))


def describe(bundle: OnnxClassifier) -> str:
    """Return a bundle's figures, a line each, and its folder."""
    lines = [f"techniques {', '.join(bundle.card.techniques)}", f"megabytes {megabytes(bundle.folder):.2f}"]
    if bundle.card.accuracy is not None:
        lines.append(f"accuracy {bundle.card.accuracy:.4f} on {bundle.card.data}")
    return "\n".join([*lines, str(bundle.folder), ""])


def predict_command(config: PredictConfig) -> None:
    """Label, a line a text: label, probability, text."""
    texts = [config.text] if config.text else [line.rstrip("\n") for line in sys.stdin]
    for text, found in zip(texts, OnnxClassifier(config.bundle, config.threads).predict(texts), strict=True):
        sys.stdout.write(f"{found.label}\t{found.probability:.3f}\t{text}\n")


if __name__ == "__main__":
    run_commands({"convert": convert_command, "predict": predict_command}, module=MODULE, extra="optimization")
