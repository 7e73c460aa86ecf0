r"""Questions about images, answered by BLIP (Li et al., 2022, arXiv:2201.12086) or ViLT (Kim et al., 2021, 2102.03334).

    python -m multimodal_llm.visual_question_answering.vqa_system ask --image photo.jpg --question "how many dogs?"
    python -m multimodal_llm.visual_question_answering.vqa_system ask --model dandelin/vilt-b32-finetuned-vqa \
        --image photo.jpg --question "how many dogs?"
    python -m multimodal_llm.visual_question_answering.vqa_system evaluate
    python -m multimodal_llm.visual_question_answering.vqa_system train --data easy_vqa.zip

    load_answerer().answer([open_image("a.jpg")], ["how many circles are there?"])

BLIP writes an answer, or ranks answers that it is given by their probability; ViLT chooses among those it was trained
for. A figure means little beside no other: ``evaluate`` shows what the question alone gives away.
"""

from __future__ import annotations

import json
import logging
import math
import sys
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from multimodal_llm.image_captioning.blip_model import (
    BUILTIN,
    CHECKPOINT,
    PROJECT,
    Recipe,
    fit,
    learning,
    load_pretrained,
    padded_ids,
    shuffled,
)
from multimodal_llm.visual_question_answering.data_loader import (
    DataConfig,
    QuestionPrior,
    Skipped,
    VQARecord,
    answer_vocabulary,
    digest_of,
    load_vqa,
    normalize_answer,
    normalized_counts,
    open_image,
    vqa_accuracy,
    why_not,
)
from shared.config import check_range, run_commands
from shared.errors import InputError
from shared.logs import progress_bar
from shared.results import Run, write_atomic
from shared.runtime import set_threads

if TYPE_CHECKING:
    from PIL.Image import Image
    from torch import Tensor

MODULE = f"{PROJECT}.visual_question_answering.vqa_system"
NOT_RECIPE = {"recipe": False}
logger = logging.getLogger(MODULE)


# --- Answering --------------------------------------------------------------------------------------------------------


def heed_padding(model: Any) -> Any:
    """Let BLIP's decoder overlook the padding of shorter questions, which transformers 5.23 looks at.

    There the mask comes to the cross-attention under the name of another one and is dropped, so that an answer depends
    on the longest question of its batch.
    """

    def named(module: Any, args: Any, kwargs: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
        return args, {"encoder_attention_mask": kwargs.get("attention_mask"), **kwargs}

    for layer in model.text_decoder.bert.encoder.layer:
        layer.crossattention.self.register_forward_pre_hook(named, with_kwargs=True)
    return model


@dataclass(frozen=True)
class Answer:
    """What a model says.

    Attributes:
        text: The answer.
        probability: In (0, 1]. Of a BLIP that writes, that of all its tokens; of one that ranks, the share among the
            candidates; of a ViLT, its sigmoid: answers do not exclude one another there.
        ranked: The best candidates and their probabilities, best first; of a BLIP that writes, the answer alone.
    """

    text: str
    probability: float
    ranked: tuple[tuple[str, float], ...]


class Answerer:
    """Answers questions with one model.

    Args:
        model: ``BlipForQuestionAnswering`` or ``ViltForQuestionAnswering``.
        processor: Its own.
        name: What was resolved.

    Raises:
        InputError: The model is of another kind.
    """

    def __init__(self, model: Any, processor: Any, name: str = "") -> None:
        self.model, self.processor, self.name = model, processor, name
        self.kind = model.config.model_type
        if self.kind not in ("blip", "vilt"):
            raise InputError(f"The model must be BLIP or ViLT. {name or 'It'} is {self.kind}.",
                             hint="Salesforce/blip-vqa-base or dandelin/vilt-b32-finetuned-vqa")  # fmt: skip
        if self.kind == "blip":
            heed_padding(model)

    def answer(
        self, images: Sequence[Image], questions: Sequence[str], *, image_of: Sequence[int] | None = None,
        candidates: Sequence[str] = (), num_beams: int = 1, top_k: int = 5,
    ) -> list[Answer]:  # fmt: skip
        """Answer questions, in one batch.

        Args:
            images: RGB; a BLIP looks at each once, however many questions there are about it.
            questions: What is asked.
            image_of: Of each question, the number of its image; by default question i is about image i.
            candidates: Answers to choose from; by default BLIP writes, and ViLT chooses among all it knows.
            num_beams: For a BLIP that writes; 1 is greedy.
            top_k: Candidates that are returned.

        Raises:
            InputError: A question or a candidate is empty or in a script that the model can't read, or none of the
                candidates is known to a ViLT.
        """
        import torch

        which = list(range(len(questions))) if image_of is None else list(image_of)
        for question in questions:
            self.check(question)
        for candidate in candidates if self.kind == "blip" else ():  # a ViLT reads none, but looks them up
            self.check(candidate, "a candidate")
        if not questions:
            return []
        with torch.inference_mode():
            if self.kind == "vilt":
                return self._choose([images[i] for i in which], questions, candidates, top_k)
            asked, mask = self._read(images, questions, which)
            return self._rank(asked, mask, candidates, top_k) if candidates else self._write(asked, mask, num_beams)

    def check(self, text: str, what: str = "question") -> None:
        """Raise an :class:`InputError` if a text is empty or can't be read; ``what`` is what it is."""
        if not text.strip():
            raise InputError(f"{what} must not be empty.")
        if not self.reads(text):
            raise InputError(f"The model can't read {text[:80]!r}.",
                             hint="in the language that it was trained in, which is English")  # fmt: skip

    def reads(self, text: str) -> bool:
        """Say whether the tokenizer knows most of a text; of Chinese, one for English sees nothing at all."""
        tokens = self.processor.tokenizer.tokenize(text)
        return 2 * tokens.count(self.processor.tokenizer.unk_token) < len(tokens)

    def _read(self, images: Sequence[Image], questions: Sequence[str], which: Sequence[int]) -> tuple[Tensor, Tensor]:
        """Return what BLIP's encoder makes of each question before its image, (Q, T, C), and its mask (Q, T)."""
        import torch

        pixels = self.processor.image_processor(list(images), return_tensors="pt")["pixel_values"]
        seen = self.model.vision_model(pixel_values=pixels.to(self.model.device, self.model.dtype)).last_hidden_state
        ids = self.processor.tokenizer(list(questions), padding=True, padding_side="right", truncation=True,
                                       max_length=self.model.config.text_config.max_position_embeddings,
                                       return_tensors="pt").to(self.model.device)  # fmt: skip
        asked = self.model.text_encoder(
            input_ids=ids["input_ids"], attention_mask=ids["attention_mask"],
            encoder_hidden_states=seen[torch.tensor(which, device=seen.device)],
        ).last_hidden_state  # fmt: skip
        return asked, ids["attention_mask"]

    def _write(self, asked: Tensor, mask: Tensor, num_beams: int) -> list[Answer]:
        """Let BLIP write. ``generate`` of the whole model would give its decoder no mask at all."""
        import torch

        text, decoder = self.model.config.text_config, self.model.text_decoder
        start = torch.full((len(asked), 1), text.bos_token_id, device=asked.device)
        out = decoder.generate(
            input_ids=start, encoder_hidden_states=asked, encoder_attention_mask=mask, num_beams=num_beams,
            do_sample=False, max_new_tokens=20, eos_token_id=text.sep_token_id, pad_token_id=text.pad_token_id,
            return_dict_in_generate=True, output_scores=True,
        )  # fmt: skip
        beams = getattr(out, "beam_indices", None)
        scores = decoder.compute_transition_scores(out.sequences, out.scores, beams, normalize_logits=beams is None)
        answers = []
        for ids, row in zip(out.sequences.tolist(), scores.float().tolist(), strict=True):
            made = ids[len(ids) - len(row) :]
            count = next((i + 1 for i, token in enumerate(made) if token == text.sep_token_id), len(made))
            words = self.processor.tokenizer.decode(made[:count], skip_special_tokens=True).strip()
            probability = math.exp(sum(row[:count]))
            answers.append(Answer(words, probability, ((words, probability),)))
        return answers

    def _rank(self, asked: Tensor, mask: Tensor, candidates: Sequence[str], top_k: int) -> list[Answer]:
        """Let BLIP say how probable each candidate is, and divide by their sum."""
        import torch

        text = self.model.config.text_config
        ids, answer_mask = padded_ids(self.processor.tokenizer, candidates, text.bos_token_id,
                                      text.max_position_embeddings)  # fmt: skip
        ids, answer_mask = ids.to(asked.device), answer_mask.to(asked.device)  # (K, T)
        answers = []
        for its, its_mask in zip(asked, mask, strict=True):
            logits = self.model.text_decoder(
                input_ids=ids, attention_mask=answer_mask,
                encoder_hidden_states=its.expand(len(ids), -1, -1),
                encoder_attention_mask=its_mask.expand(len(ids), -1),
            ).logits  # (K, T, V)  # fmt: skip
            each = logits[:, :-1].float().log_softmax(-1).gather(-1, ids[:, 1:, None])[..., 0]
            total = (each * answer_mask[:, 1:]).sum(-1)  # (K,)
            answers.append(_best(torch.softmax(total, 0).tolist(), candidates, top_k))
        return answers

    def _choose(
        self, images: Sequence[Image], questions: Sequence[str], candidates: Sequence[str], top_k: int
    ) -> list[Answer]:
        labels = self.model.config.id2label
        allowed = {normalize_answer(one) for one in candidates}
        known = [i for i, label in labels.items() if not allowed or normalize_answer(label) in allowed]
        if not known:
            raise InputError(f"{self.name} can give none of these answers.", hint=", ".join(list(labels.values())[:20]))
        logits = self.model(**vilt_inputs(self.model, self.processor, images, questions)).logits  # (Q, labels)
        return [_best(row, [labels[i] for i in known], top_k) for row in logits[:, known].float().sigmoid().tolist()]


def _best(probabilities: Sequence[float], names: Sequence[str], top_k: int) -> Answer:
    order = sorted(range(len(names)), key=lambda i: -probabilities[i])[: max(1, top_k)]
    ranked = tuple((names[i], probabilities[i]) for i in order)
    return Answer(*ranked[0], ranked)


def vilt_inputs(model: Any, processor: Any, images: Sequence[Image], questions: Sequence[str]) -> Any:
    """Return what ViLT takes, questions cut to its longest."""
    inputs = processor(images=list(images), text=list(questions), padding=True, truncation=True, return_tensors="pt",
                       max_length=model.config.max_position_embeddings)  # fmt: skip
    return inputs.to(model.device, model.dtype)


def load_answerer(
    model: str = "builtin:vqa", device: str = "auto", dtype: str = "auto", *, to_learn: bool = False
) -> Answerer:
    """Load a model that answers; see ``blip_model.load_pretrained``.

    Args:
        model: ``builtin:vqa``, a folder or a hub id; to learn, also ``builtin:captions`` or another captioner.
        device: ``auto``, ``cpu``, ``cuda`` or ``mps``.
        dtype: ``auto``, ``float32`` or ``bfloat16``.
        to_learn: Whether a model of the same family will do that was made for something else: what it lacks is new.

    Raises:
        InputError: There is no such model, or it has not learned to answer.
    """
    place = str(BUILTIN / "captions") if to_learn and model == "builtin:captions" else model
    loaded, processor, source = load_pretrained(place, "vqa", "AutoModelForVisualQuestionAnswering", device, dtype)
    saved_as = loaded.config.architectures or []
    if not to_learn and saved_as and not any(name.endswith("ForQuestionAnswering") for name in saved_as):
        raise InputError(f"{source} is a {saved_as[0]}, which has not learned to answer.",
                         hint=f"python -m {MODULE} train --model {model}")  # fmt: skip
    return Answerer(loaded, processor, str(source))


def by_image(records: Sequence[VQARecord]) -> list[list[VQARecord]]:
    """Put the questions about an image together."""
    groups: dict[str, list[VQARecord]] = defaultdict(list)
    for record in records:
        groups[record.image_id].append(record)
    return list(groups.values())


def answer_records(
    answerer: Answerer, records: Sequence[VQARecord], skipped: Skipped, *, candidates: Sequence[str] = (),
    num_beams: int = 1, images_at_a_time: int = 16,
) -> Iterator[tuple[VQARecord, Answer]]:  # fmt: skip
    """Yield each record with its answer; those whose image can't be opened are counted and left out."""
    groups = by_image(records)
    with progress_bar() as bar:
        task = bar.add_task("answers", total=len(records), figures="")
        for start in range(0, len(groups), images_at_a_time):
            images, asked, which = [], [], []
            for group in groups[start : start + images_at_a_time]:
                try:
                    images.append(open_image(group[0].image))
                except (InputError, OSError) as error:
                    for _ in group:
                        skipped.add("the image can't be opened", why_not(group[0].image, error))
                    continue
                for record in group:
                    if answerer.reads(record.question):
                        asked.append(record)
                        which.append(len(images) - 1)
                    else:
                        skipped.add("the model can't read the question", record.question)
            questions = [record.question for record in asked]
            made = answerer.answer(images, questions, image_of=which, candidates=candidates, num_beams=num_beams)
            yield from zip(asked, made, strict=True)
            bar.update(task, advance=sum(map(len, groups[start : start + images_at_a_time])))


# --- Measuring --------------------------------------------------------------------------------------------------------


def measure(
    answerer: Answerer, records: Sequence[VQARecord], prior: QuestionPrior | None, *, candidates: Sequence[str] = (),
    num_beams: int = 1, path: Path | None = None,
) -> tuple[dict[str, float], str]:  # fmt: skip
    """Answer questions and hold the answers against people's, beside what the question alone gives away.

    Args:
        answerer: Answers.
        records: With answers.
        prior: Of the training questions; None where there are none.
        candidates: See :meth:`Answerer.answer`.
        num_beams: Likewise.
        path: Where answers go, the wrong ones first.

    Returns:
        Figures, and a table of them: the official accuracy of all questions and of each type.
    """
    skipped, rows = Skipped(), []
    for record, made in answer_records(answerer, records, skipped, candidates=candidates, num_beams=num_beams):
        row = {"id": record.id, "question": record.question, "type": record.question_type, "answer": made.text,
               "probability": round(made.probability, 4), "answers": dict(record.answers),
               "accuracy": vqa_accuracy(made.text, record.answers)}  # fmt: skip
        if prior:
            guess = prior.predict(record)
            row |= {"prior": guess, "prior accuracy": vqa_accuracy(guess, record.answers)}
        rows.append(row)
    for line in filter(None, str(skipped).split("\n")):
        logger.warning("%s", line)
    if not rows:
        raise InputError("No question is left to measure.", hint=str(skipped))
    metrics: dict[str, float] = {"questions": len(rows), "left out": skipped.counts.total()}
    types = sorted({row["type"] for row in rows})
    lines = [f"{'question type':22}{'questions':>10}{'accuracy':>10}{'prior':>10}"]
    for kind in [*types, ""]:
        its = [row for row in rows if kind in ("", row["type"])]
        accuracy = float(np.mean([row["accuracy"] for row in its]))
        metrics[f"accuracy {kind}".strip()] = accuracy
        shown = f"{kind or 'all':22}{len(its):>10,}{accuracy:>10.4f}"
        if prior:
            metrics[f"prior {kind}".strip()] = guessed = float(np.mean([row["prior accuracy"] for row in its]))
            shown += f"{guessed:>10.4f}"
        lines.append(shown)
    if path:
        rows.sort(key=lambda row: (row["accuracy"], -row["probability"]))
        write_atomic(path, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))
    return metrics, "\n".join(lines)


# --- Training ---------------------------------------------------------------------------------------------------------


def answer_loss(model: Any, batch: dict[str, Tensor]) -> Tensor:
    """Return BLIP's loss of a batch of :func:`answer_batch`: −log p(answer | image, question)."""
    # As the model's own forward, but each image is encoded once for all its questions
    seen = model.vision_model(pixel_values=batch["pixel_values"]).last_hidden_state  # (B, N, C)
    asked = model.text_encoder(
        input_ids=batch["input_ids"], attention_mask=batch["attention_mask"],
        encoder_hidden_states=seen[batch["image_of"]],
    ).last_hidden_state  # (Q, T, C)  # fmt: skip
    answers, mask = batch["answer_ids"], batch["answer_mask"]
    loss: Tensor = model.text_decoder(
        input_ids=answers, attention_mask=mask, encoder_hidden_states=asked,
        encoder_attention_mask=batch["attention_mask"], labels=answers.masked_fill(mask == 0, -100),
    ).loss  # fmt: skip
    return loss


def answer_batch(
    tokenizer: Any, pixels: Tensor, image_of: Sequence[int], questions: Sequence[str], answers: Sequence[str],
    *, first: int, longest: int,
) -> dict[str, Tensor]:  # fmt: skip
    """Return the tensors of Q questions about B images.

    Args:
        tokenizer: BLIP's.
        pixels: (B, 3, height, width).
        image_of: Of each question, its image.
        questions: Q.
        answers: Q.
        first: The decoder's start token.
        longest: Most tokens of a question or an answer.
    """
    import torch

    asked = tokenizer(list(questions), padding=True, padding_side="right", truncation=True, max_length=longest,
                      return_tensors="pt")  # fmt: skip
    answer_ids, answer_mask = padded_ids(tokenizer, answers, first, longest)
    return {
        "pixel_values": pixels, "image_of": torch.tensor(list(image_of)), "input_ids": asked["input_ids"],
        "attention_mask": asked["attention_mask"], "answer_ids": answer_ids, "answer_mask": answer_mask,
    }  # fmt: skip


def choice_loss(model: Any, batch: dict[str, Tensor]) -> Tensor:
    """Return ViLT's loss: binary cross-entropy of each answer's share of people, summed."""
    loss: Tensor = model(**batch).loss
    return loss


@dataclass
class TrainConfig(DataConfig):
    """Teach a BLIP or a ViLT to answer questions like yours, and measure it beside the prior of the questions.

    Without arguments the embedded model goes on with 400 steps of its own scenes, to show that it runs.
    """

    model: str = "builtin:vqa"
    """builtin:vqa, a folder, or a hub id such as Salesforce/blip-vqa-base or dandelin/vilt-b32-mlm; or a captioner
    whose eyes the answerer shall have, such as builtin:captions, which sees shapes anywhere."""
    steps: int = 400
    """Steps, >= 1."""
    batch_size: int = 32
    """Images of a step of one process, each with questions."""
    questions: int = 6
    """Most questions about an image in a step, >= 1."""
    learning_rate: float = 5e-4
    """Highest, > 0. For models of the hub 2e-5 is usual."""
    muon: float = 0.0
    """Learning rate of Muon, which takes the layers' matrices; 0 leaves them to AdamW. 0.006 suits small ones."""
    flip: bool = False
    """Mirror images at random: not where questions say left and right, above and below."""
    min_count: int = 1
    """For ViLT: the fewest questions that an answer has which it learns to choose."""
    seed: int = field(default=0, metadata=NOT_RECIPE)
    """Of the division and the order."""
    device: str = field(default="auto", metadata=NOT_RECIPE)
    """auto, cpu, cuda or mps."""
    threads: int = field(default=0, metadata=NOT_RECIPE)
    """CPU threads; 0 leaves it to PyTorch."""
    run: str = field(default="", metadata=NOT_RECIPE)
    """Name of the run's folder; by default the time."""
    resume: bool = field(default=False, metadata=NOT_RECIPE)
    """Go on where the run of this name stopped."""
    tracking: Literal["none", "wandb"] = field(default="none", metadata=NOT_RECIPE)
    """Mirror the figures to Weights & Biases."""

    def __post_init__(self) -> None:
        """Check the ranges."""
        super().__post_init__()
        for name in ("steps", "batch_size", "questions", "min_count"):
            check_range(name, getattr(self, name), 1)
        check_range("learning_rate", self.learning_rate, 0, open_low=True)
        check_range("muon", self.muon, 0)
        check_range("seed", self.seed, 0, 2**31 - 1)
        check_range("threads", self.threads, 0)
        if self.resume and not self.run:
            raise InputError("resume needs the name of the run.", hint="--run NAME --resume true")


def train(config: TrainConfig) -> None:
    """Train; see :class:`TrainConfig`."""
    import torch

    set_threads(config.threads)
    data = load_vqa(config, config.seed)
    answered = {split: its for split, part in data.splits.items() if (its := [one for one in part if one.answers])}
    if "train" not in answered:
        raise InputError(f"{data.name} has nothing to learn from.", hint="a data set with a train split")
    held_out = answered.get("test") or answered.get("validation") or []
    digest = digest_of((split, one.id, one.image_id, one.question, str(one.answers))
                       for split, part in answered.items() for one in part)  # fmt: skip
    torch.manual_seed(config.seed)  # of weights that a captioner has not
    answerer = load_answerer(config.model, config.device, "float32", to_learn=True)
    model, processor, groups = answerer.model, answerer.processor, by_image(answered["train"])
    vocabulary, covered = answer_vocabulary(answered["train"], min_count=config.min_count)
    if answerer.kind == "vilt" and sorted(model.config.id2label.values()) != sorted(vocabulary):
        model = _with_answers(answerer, vocabulary)
        logger.info("%d answers to choose from, of %.1f %% of the questions", len(vocabulary), 100 * covered)
    skipped = Skipped()

    def batch_of(number: int) -> dict[str, Tensor]:
        rng = np.random.default_rng((config.seed, number))
        images, which, asked = [], [], []
        for i in shuffled(len(groups), min(config.batch_size, len(groups)), config.seed, number):
            try:
                image = open_image(groups[i][0].image)
            except (InputError, OSError) as error:
                skipped.add("the image can't be opened", why_not(groups[i][0].image, error))
                continue
            if config.flip:
                image = _flipped(image, rng)
            its = rng.permutation(len(groups[i]))[: config.questions]
            asked += [groups[i][j] for j in its]
            which += [len(images)] * len(its)
            images.append(image)
        if not images:
            raise InputError(f"No image of a whole batch can be opened. {skipped}")
        questions = [record.question for record in asked]
        if answerer.kind == "vilt":
            inputs = vilt_inputs(model, processor, [images[i] for i in which], questions)
            return {**inputs, "labels": _shares(model, asked)}
        text = model.config.text_config
        pixels = processor.image_processor(images, return_tensors="pt")["pixel_values"]
        return answer_batch(processor.tokenizer, pixels, which, questions, [record.answer for record in asked],
                            first=text.bos_token_id, longest=min(64, text.max_position_embeddings))  # fmt: skip

    recipe = Recipe(config.steps, config.batch_size, config.learning_rate, muon=config.muon, seed=config.seed,
                    device=config.device)  # fmt: skip
    loss = choice_loss if answerer.kind == "vilt" else answer_loss
    with learning(MODULE, config, digest) as (folder, run):
        fit(model, loss, batch_of, recipe, folder, tracking=config.tracking)
        if skipped.counts:
            logger.warning("%s", skipped)
        if run:
            model.save_pretrained(folder / "model")
            processor.save_pretrained(folder / "model")
            metrics, table = {}, ""
            if held_out:
                metrics, table = measure(Answerer(model, processor, config.model), held_out,
                                         QuestionPrior(answered["train"]), path=folder / "answers.jsonl")  # fmt: skip
            run.finish(model=config.model, data=data.name, seed=config.seed, metrics=metrics)
            (folder / CHECKPOINT).unlink(missing_ok=True)
            sys.stdout.write(f"{table}\n{folder / 'model'}\n")


def _flipped(image: Image, rng: np.random.Generator) -> Image:
    from PIL import ImageOps

    image = ImageOps.mirror(image) if rng.random() < 0.5 else image
    return ImageOps.flip(image) if rng.random() < 0.5 else image


def _with_answers(answerer: Answerer, vocabulary: Sequence[str]) -> Any:
    """Give a ViLT a new head for these answers, on its own body."""
    from torch import nn

    model = answerer.model
    model.config.id2label = dict(enumerate(vocabulary))
    model.config.label2id = {label: i for i, label in enumerate(vocabulary)}
    model.num_labels = len(vocabulary)
    head = nn.Linear(model.classifier[-1].in_features, len(vocabulary))
    nn.init.normal_(head.weight, std=model.config.initializer_range)
    nn.init.zeros_(head.bias)
    model.classifier[-1] = head.to(model.device)
    return model


def _shares(model: Any, records: Sequence[VQARecord]) -> Tensor:
    """Return (Q, labels): the accuracy that each answer would have, which is what ViLT learns to predict."""
    import torch

    shares = torch.zeros(len(records), len(model.config.id2label))
    for row, record in zip(shares, records, strict=True):
        for answer in normalized_counts(record.answers):
            if answer in model.config.label2id:
                row[model.config.label2id[answer]] = vqa_accuracy(answer, record.answers)
    return shares


# --- Commands ---------------------------------------------------------------------------------------------------------


@dataclass
class AskConfig:
    """Ask about an image."""

    image: str = ""
    """A file; by default a scene is drawn."""
    question: list[str] = field(default_factory=list, metadata={"whole": True})
    """What to ask, each with a flag of its own; by default one question of each kind about the scene."""
    model: str = "builtin:vqa"
    """builtin:vqa, a folder, or a hub id such as Salesforce/blip-vqa-base or dandelin/vilt-b32-finetuned-vqa."""
    candidates: list[str] = field(default_factory=list)
    """Answers to choose from; by default the model writes its own."""
    num_beams: int = 1
    """Answers that are pursued at a time; 1 is greedy."""
    top_k: int = 3
    """Candidates that are shown."""
    device: str = field(default="auto", metadata=NOT_RECIPE)
    """auto, cpu, cuda or mps."""
    seed: int = field(default=0, metadata=NOT_RECIPE)
    """Of the scene."""
    run: str = field(default="", metadata=NOT_RECIPE)
    """Name of the run's folder; by default the time."""

    def __post_init__(self) -> None:
        """Check the ranges."""
        check_range("num_beams", self.num_beams, 1, 64)
        check_range("top_k", self.top_k, 1, 100)
        check_range("seed", self.seed, 0, 2**31 - 1)


def ask(config: AskConfig) -> None:
    """Answer questions; see :class:`AskConfig`."""
    known: dict[str, str] = {}
    drawn = None
    if config.image:
        image, questions = open_image(Path(config.image)), config.question
        if not questions:
            raise InputError("question must not be empty.", hint='--question "how many circles are there?"')
    else:
        import random

        from multimodal_llm.builtin import scenes

        scene = next(iter(scenes.scenes("test", 1, config.seed)))
        drawn = scenes.SceneImage(scene)
        if not config.question:
            known = {one.question: one.answer for one in scenes.questions(scene, random.Random(config.seed))}
        image, questions = open_image(drawn), config.question or list(known)
        sys.stdout.write(f"A scene: {scene.caption}\n")
    answerer = load_answerer(config.model, config.device)
    refused: dict[str, InputError] = {}
    for question in questions:
        try:
            answerer.check(question)
        except InputError as error:
            refused[question] = error
    asked = [question for question in questions if question not in refused]
    if not asked:
        raise refused[questions[0]]
    answers = iter(answerer.answer([image], asked, image_of=[0] * len(asked), candidates=config.candidates,
                                   num_beams=config.num_beams, top_k=config.top_k))  # fmt: skip
    run, rows = Run(PROJECT, MODULE, "ask", config, name=config.run), []
    for question in questions:
        if question in refused:
            sys.stdout.write(f"{question}  not answered: {refused[question].args[0]}\n")
            continue
        made = next(answers)
        rows.append({"question": question, "answer": made.text, "probability": round(made.probability, 4)})
        shown = ", ".join(f"{text} {probability:.3f}" for text, probability in made.ranked)
        wrong = question in known and normalize_answer(made.text) != known[question]
        sys.stdout.write(f"{question}  {shown}{f'   (right: {known[question]})' if wrong else ''}\n")
    write_atomic(run.folder / "answers.jsonl", "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))
    if drawn:
        write_atomic(run.folder / "scene.png", drawn.read())
    run.finish(model=config.model, data=config.image or "builtin:scenes", seed=config.seed,
               metrics={"questions": len(questions), "left out": len(refused)})  # fmt: skip
    logger.info("saved in %s", run.folder / "scene.png" if drawn else run.folder)


@dataclass
class EvaluateConfig(DataConfig):
    """Answer the questions of a data set, and measure it beside the prior of the questions."""

    model: str = "builtin:vqa"
    """builtin:vqa, a folder, or a hub id."""
    split: Literal["test", "validation", "train"] = "test"
    """What is asked; where there is none, validation."""
    candidates: list[str] = field(default_factory=list)
    """Answers to choose from; by default the model writes its own."""
    num_beams: int = 1
    """Answers that are pursued at a time; 1 is greedy."""
    device: str = field(default="auto", metadata=NOT_RECIPE)
    """auto, cpu, cuda or mps."""
    dtype: Literal["auto", "float32", "bfloat16"] = "auto"
    """What to compute in."""
    threads: int = field(default=0, metadata=NOT_RECIPE)
    """CPU threads; 0 leaves it to PyTorch."""
    seed: int = field(default=0, metadata=NOT_RECIPE)
    """Of the division."""
    run: str = field(default="", metadata=NOT_RECIPE)
    """Name of the run's folder; by default the time."""

    def __post_init__(self) -> None:
        """Check the ranges."""
        super().__post_init__()
        check_range("num_beams", self.num_beams, 1, 64)
        check_range("threads", self.threads, 0)
        check_range("seed", self.seed, 0, 2**31 - 1)


def evaluate(config: EvaluateConfig) -> None:
    """Measure; see :class:`EvaluateConfig`."""
    set_threads(config.threads)
    data = load_vqa(config, config.seed)
    split = config.split if data.splits.get(config.split) else "validation"
    records = [record for record in data.splits.get(split, ()) if record.answers]
    if records and split != config.split:
        logger.warning("%s has no split %s; %s is measured", data.name, config.split, split)
    if not records:
        raise InputError(f"{data.name} has no answered questions of split {config.split}.",
                         hint=f"it has {', '.join(data.splits)}")  # fmt: skip
    answerer = load_answerer(config.model, config.device, config.dtype)
    run = Run(PROJECT, MODULE, "evaluate", config, name=config.run)
    prior = QuestionPrior(data.splits["train"]) if data.splits.get("train") and split != "train" else None
    metrics, table = measure(answerer, records, prior, candidates=config.candidates, num_beams=config.num_beams,
                             path=run.folder / "answers.jsonl")  # fmt: skip
    run.finish(model=config.model, data=f"{data.name}, {split}", seed=config.seed, metrics=metrics)
    sys.stdout.write(f"{table}\n")
    logger.info("saved in %s", run.folder)


if __name__ == "__main__":
    run_commands({"ask": ask, "evaluate": evaluate, "train": train}, module=MODULE, extra="multimodal")
