"""The three embedded models, BLIP twice and CLIP, trained here on scenes that are made here.

    python -m multimodal_llm.builtin.train_models train --model captions --threads 1
    python -m multimodal_llm.builtin.train_models train --model grid --threads 1     # not shipped; for the other two
    python -m multimodal_llm.builtin.train_models train --model vqa --threads 1      # begins with the eyes of grid
    python -m multimodal_llm.builtin.train_models train --model clip --threads 1     # likewise
    python -m multimodal_llm.builtin.train_models evaluate --model vqa

Architectures are transformers' own ``BlipForConditionalGeneration``, ``BlipForQuestionAnswering`` and ``CLIPModel``, of
width 128, on patches of 16 pixels, the captioner's of 8. A step's scenes are drawn when it comes and never come again.
What had to be found: BLIP's vision tower starts with weights of 1e-10 unless told otherwise, and learns nothing;
positions that start as small as the other weights are not told apart, so that every object seems to be everywhere;
objects of any size at any place are learned on small patches, and from the grid outwards; an answerer needs questions
of where things are, else it never learns how they lie to each other, and on small patches 2,200 steps did not do.
"""

from __future__ import annotations

import itertools
import json
import random
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from multimodal_llm.builtin import scenes
from multimodal_llm.builtin.scenes import COLORS, RADIUS, SHAPES, SIDE, Scene, SceneObject
from multimodal_llm.clip_applications import image_search, zero_shot_classification
from multimodal_llm.clip_applications.zero_shot_classification import load_clip
from multimodal_llm.image_captioning import blip_model
from multimodal_llm.image_captioning.blip_model import CHECKPOINT, PROJECT, Recipe, caption_loss, fit, padded_ids
from multimodal_llm.visual_question_answering import vqa_system
from multimodal_llm.visual_question_answering.data_loader import DataConfig, QuestionPrior, load_vqa
from multimodal_llm.visual_question_answering.vqa_system import answer_batch, answer_loss, heed_padding
from shared.config import check_range, command_line, run_commands
from shared.errors import InputError
from shared.results import OUTPUTS, Run, check_resumable, write_atomic
from shared.runtime import hardware, set_threads

if TYPE_CHECKING:
    from torch import Tensor

MODULE = f"{PROJECT}.builtin.train_models"
BUILTIN = Path(__file__).parent
NOT_RECIPE = {"recipe": False}
WIDTH, LONGEST = 128, 40  # of every model here: width, tokens of a text
PATCH, GRID_PATCH = 8, 16  # pixels; the larger one is four times as fast, and sees only what stands on the grid
LOOSE_FROM, LOOSE_TO = 100, 1300  # steps of the captioner, in which objects leave the grid
SPREAD = 0.08  # standard deviation of new weights; 1 of positions
# Words beyond those of the scenes that are one token each, so that other small pictures can be learned about too.
MORE_WORDS = (
    "the in on at it its image picture photo does do not no yes contain contains present any this that these what "
    "which where how many shape shapes color colors object objects rectangle oval line dot gray grey teal brown white "
    "black magenta zero one two three four five six seven eight nine ten top bottom left right middle big little "
    "background"
).split()


# --- Tokenizers and new models ----------------------------------------------------------------------------------------


def _words() -> list[str]:
    """Return every word of captions, questions and answers, the letters and marks before them."""
    rng = random.Random(0)
    texts = []
    for scene in scenes.scenes("train", 2000):
        texts += scenes.captions(scene)
        texts += [f"{one.question} {one.answer}" for one in scenes.questions(scene, rng)]
    seen = {word for text in texts for word in "".join(c if c.isalnum() else " " for c in text).split()}
    return sorted(word for word in seen | set(MORE_WORDS) if len(word) > 1)


def blip_processor() -> Any:
    """Return the processor of both BLIPs: pictures of 64 × 64, and BERT's WordPiece with the words of the scenes."""
    from transformers import BertTokenizerFast, BlipProcessor
    from transformers.models.blip.image_processing_pil_blip import BlipImageProcessorPil

    letters = "abcdefghijklmnopqrstuvwxyz0123456789"
    pieces = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "[DEC]", *letters, *(f"##{c}" for c in letters),
              *".,?!'\"-:;()", *_words()]  # fmt: skip
    tokenizer = BertTokenizerFast(vocab={piece: i for i, piece in enumerate(pieces)}, model_max_length=LONGEST,
                                  additional_special_tokens=["[DEC]"])  # fmt: skip
    images = BlipImageProcessorPil(size={"height": SIDE, "width": SIDE}, image_mean=[0.5] * 3, image_std=[0.5] * 3)
    return BlipProcessor(images, tokenizer)


def _blip_config(tokenizer: Any, vision_layers: int, text_layers: int, patch: int = PATCH) -> Any:
    from transformers import BlipConfig

    ids = tokenizer.convert_tokens_to_ids
    vision = {"hidden_size": WIDTH, "intermediate_size": 4 * WIDTH, "num_hidden_layers": vision_layers,
              "num_attention_heads": 4, "image_size": SIDE, "patch_size": patch,
              "initializer_range": SPREAD}  # fmt: skip
    text = {"vocab_size": len(tokenizer), "hidden_size": WIDTH, "encoder_hidden_size": WIDTH,
            "intermediate_size": 4 * WIDTH, "num_hidden_layers": text_layers, "num_attention_heads": 4,
            "max_position_embeddings": LONGEST, "initializer_range": SPREAD, "hidden_dropout_prob": 0.0,
            "attention_probs_dropout_prob": 0.0, "bos_token_id": ids("[DEC]"), "eos_token_id": ids("[SEP]"),
            "sep_token_id": ids("[SEP]"), "pad_token_id": ids("[PAD]"), "projection_dim": WIDTH}  # fmt: skip
    return BlipConfig(vision_config=vision, text_config=text, projection_dim=WIDTH, image_text_hidden_size=WIDTH)


def _positions_apart(model: Any) -> None:
    """Start positions, and what stands for the whole picture, with a standard deviation of 1."""
    import torch

    with torch.no_grad():
        for name, weight in model.named_parameters():
            if "position_embedding" in name or "class_embedding" in name:
                weight.normal_(0, 1)


def new_captioner(processor: Any, seed: int, patch: int = PATCH) -> Any:
    """Return an untrained ``BlipForConditionalGeneration`` of 1.4 million weights."""
    import torch
    from transformers import BlipForConditionalGeneration

    torch.manual_seed(seed)
    model = BlipForConditionalGeneration(_blip_config(processor.tokenizer, 4, 2, patch))
    _positions_apart(model)
    return model


def place_of(name: str) -> Path:
    """Return the folder where a model of :data:`KINDS` lies by default: in the package, if it is shipped."""
    return BUILTIN / name if KINDS[name].shipped else OUTPUTS / PROJECT / "models" / name


def taught_captioner(name: str) -> Any:
    """Return the captioner that another model begins with.

    Args:
        name: ``captions`` or ``grid``.

    Raises:
        InputError: It is not trained yet.
    """
    import torch
    from transformers import BlipForConditionalGeneration

    folder = place_of(name)
    if not (folder / "model.safetensors").exists():
        raise InputError(f"{folder} is not there, whose eyes this model begins with.",
                         hint=f"python -m {MODULE} train --model {name}")  # fmt: skip
    return BlipForConditionalGeneration.from_pretrained(folder, dtype=torch.float32)


def new_answerer(processor: Any, seed: int) -> Any:
    """Return a ``BlipForQuestionAnswering`` of 2.6 million weights that sees with the eyes of ``grid``."""
    import torch
    from transformers import BlipForQuestionAnswering

    torch.manual_seed(seed)
    model = BlipForQuestionAnswering(_blip_config(processor.tokenizer, 4, 3, GRID_PATCH))
    model.vision_model.load_state_dict(taught_captioner("grid").vision_model.state_dict())
    return heed_padding(model)


def clip_processor() -> Any:
    """Return CLIP's processor: pictures of 64 × 64, and a byte-level BPE trained on the captions."""
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, trainers
    from transformers import CLIPProcessor, CLIPTokenizerFast
    from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

    learned = Tokenizer(models.BPE(end_of_word_suffix="</w>"))
    learned.normalizer = normalizers.Lowercase()
    learned.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.Split(" ", "removed"),
                                                     pre_tokenizers.ByteLevel(add_prefix_space=False)])  # fmt: skip
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    # Numbered beforehand, since the trainer numbers them in an order that changes from run to run
    pieces = [*alphabet, *(f"{c}</w>" for c in alphabet)]
    trainer = trainers.BpeTrainer(vocab_size=1024, special_tokens=pieces, end_of_word_suffix="</w>",
                                  show_progress=False)  # fmt: skip
    learned.train_from_iterator([" ".join(_words())] * 20, trainer)
    content = json.loads(learned.to_str())["model"]
    vocabulary = dict(content["vocab"])
    for piece in ("<|startoftext|>", "<|endoftext|>"):
        vocabulary[piece] = len(vocabulary)
    tokenizer = CLIPTokenizerFast(vocab=vocabulary, merges=[tuple(pair) for pair in content["merges"]],
                                  model_max_length=LONGEST)  # fmt: skip
    images = CLIPImageProcessorPil(size={"height": SIDE, "width": SIDE}, do_center_crop=False, do_convert_rgb=True,
                                   image_mean=[0.5] * 3, image_std=[0.5] * 3)  # fmt: skip
    return CLIPProcessor(images, tokenizer)


def untrained_clip(processor: Any, seed: int) -> Any:
    """Return a ``CLIPModel`` of 1.6 million weights that has learned nothing."""
    import torch
    from transformers import CLIPConfig, CLIPModel

    torch.manual_seed(seed)
    tokenizer = processor.tokenizer
    both = {"hidden_size": WIDTH, "intermediate_size": 4 * WIDTH, "num_attention_heads": 4}
    vision = both | {"num_hidden_layers": 4, "image_size": SIDE, "patch_size": GRID_PATCH, "hidden_act": "gelu"}
    text = both | {"num_hidden_layers": 3, "vocab_size": len(tokenizer), "max_position_embeddings": LONGEST,
                   "bos_token_id": tokenizer.bos_token_id, "eos_token_id": tokenizer.eos_token_id,
                   "pad_token_id": tokenizer.pad_token_id}  # fmt: skip
    model = CLIPModel(CLIPConfig(vision_config=vision, text_config=text, projection_dim=WIDTH))
    _positions_apart(model)
    torch.nn.init.normal_(model.text_model.embeddings.token_embedding.weight)  # 0.02 would drown in the positions
    return model


def new_clip(processor: Any, seed: int) -> Any:
    """Return a ``CLIPModel`` that sees with the eyes of ``grid``."""
    model = untrained_clip(processor, seed)
    borrow_eyes(model, taught_captioner("grid").vision_model)
    return model


def borrow_eyes(model: Any, taught: Any) -> None:
    """Give an untrained CLIP the layers of BLIP's vision tower, which has another form: Q, K and V in one matrix.

    CLIP's patches have no bias, so the positions take it; and it normalizes before its first layer, which BLIP does
    not, so this is a beginning, not the same function.
    """
    import torch

    seen, own = taught.embeddings, model.vision_model.embeddings
    with torch.no_grad():
        own.class_embedding.copy_(seen.class_embedding.flatten())
        own.patch_embedding.weight.copy_(seen.patch_embedding.weight)
        own.position_embedding.weight.copy_(seen.position_embedding[0])
        own.position_embedding.weight[1:] += seen.patch_embedding.bias
        for mine, its in zip(model.vision_model.encoder.layers, taught.encoder.layers, strict=True):
            attention = mine.self_attn
            for i, part in enumerate((attention.q_proj, attention.k_proj, attention.v_proj)):
                part.weight.copy_(its.self_attn.qkv.weight.chunk(3)[i])
                part.bias.copy_(its.self_attn.qkv.bias.chunk(3)[i])
            attention.out_proj.load_state_dict(its.self_attn.projection.state_dict())
            for name in ("layer_norm1", "layer_norm2", "mlp"):
                getattr(mine, name).load_state_dict(getattr(its, name).state_dict())


# --- What they learn from ---------------------------------------------------------------------------------------------


def pixels(drawn: Sequence[Scene]) -> Tensor:
    """Return (B, 3, 64, 64) in [−1, 1], as the processors make of the pictures."""
    import torch

    stacked = np.stack([np.asarray(scenes.render(scene)) for scene in drawn])  # (B, 64, 64, 3)
    return torch.from_numpy(stacked).permute(0, 3, 1, 2).float() / 127.5 - 1


def _batch_seed(seed: int, number: int) -> int:
    """Make of the numbers of a training and a batch a seed that no other batch has."""
    return seed * 10_000_019 + number + 1


def _drawn(seed: int, number: int, count: int) -> tuple[list[Scene], random.Random]:
    its = _batch_seed(seed, number)
    return list(scenes.scenes("train", count, its)), random.Random(its)


def _captioned(tokenizer: Any, drawn: Sequence[Scene], rng: random.Random) -> dict[str, Tensor]:
    """Return pixel values, ids and mask: four of five captions are the canonical one, others say the same."""
    texts = [scene.caption if rng.random() < 0.8 else rng.choice(scenes.captions(scene)[1:3]) for scene in drawn]
    first = tokenizer.convert_tokens_to_ids("[DEC]")
    input_ids, attention_mask = padded_ids(tokenizer, texts, first, LONGEST)
    return {"pixel_values": pixels(drawn), "input_ids": input_ids, "attention_mask": attention_mask}


def caption_batch(tokenizer: Any, seed: int, size: int, number: int) -> dict[str, Tensor]:
    """Return scenes with captions, half of them loose: objects leave the grid from step to step, for most of them."""
    its = _batch_seed(seed, number)
    drawn, rng = scenes.scenes("train", size - size // 2, its), random.Random(its + 76)  # as what is shipped had it
    spread = min(1.0, max(0.0, (number - LOOSE_FROM) / (LOOSE_TO - LOOSE_FROM))) * rng.choice((1, 1, 1, rng.random()))
    return _captioned(tokenizer, [*drawn, *scenes.loose_scenes("train", size // 2, its, spread)], rng)


def grid_caption_batch(tokenizer: Any, seed: int, size: int, number: int) -> dict[str, Tensor]:
    """Return scenes with captions, all on the grid."""
    return _captioned(tokenizer, *_drawn(seed, number, size))


def variant(scene: Scene, rng: random.Random) -> Scene:
    """Change one attribute of one object: a scene that only a close look tells from the first."""
    while True:
        place = rng.randrange(len(scene.objects))
        part, values = rng.choice([("color", tuple(COLORS)), ("shape", SHAPES), ("size", tuple(RADIUS))])
        objects = list(scene.objects)
        objects[place] = replace(objects[place], **{part: rng.choice(values)})
        if len(set(objects)) == len(objects) and objects != list(scene.objects):
            if scenes.split_of(objects) == "train":
                return Scene(tuple(objects), scene.centers, scene.background)


Meaning = list[tuple[str, ...]]  # of each object size, color and shape; empty where nothing is said of it


def said_of(scene: Scene, rng: random.Random) -> tuple[str, Meaning]:
    """Return a caption and what it says: half of them the whole, half less of each object, as names of classes do."""
    whole = rng.random() < 0.5
    meaning, names = [], []
    for one in scene.objects:
        parts = ("size", "color", "shape")
        keep = parts if whole else rng.choice([p for n in (1, 2, 3) for p in itertools.combinations(parts, n)])
        said = tuple(getattr(one, part) if part in keep else "" for part in parts)
        meaning.append(said)
        names.append(" ".join(filter(None, [*said, "" if "shape" in keep else "object"])))
    text = scenes.joined([scenes.article(name) for name in names])
    return rng.choice(["{}", "{}", "a picture of {}", "an image of {}"]).format(text), meaning


def true_of(meaning: Meaning, objects: Sequence[SceneObject]) -> bool:
    """Say whether a caption of this meaning is right for a scene of these objects."""
    return len(meaning) == len(objects) and all(
        said in ("", there)
        for saying, one in zip(meaning, objects, strict=True)
        for said, there in zip(saying, (one.size, one.color, one.shape), strict=True)
    )


def clip_batch(tokenizer: Any, seed: int, size: int, number: int) -> dict[str, Tensor]:
    """Return pixel values, ids, mask, and (B, B) which caption is also right for which other picture.

    Half of the scenes are variants of the others: only hard negatives teach which color goes with which shape
    (Yuksekgonul et al., 2022, arXiv:2210.01936).
    """
    import torch

    drawn, rng = _drawn(seed, number, size // 2)
    drawn += [variant(scene, rng) for scene in drawn]
    texts, meanings = zip(*(said_of(scene, rng) for scene in drawn), strict=True)
    also = torch.tensor([[i != j and true_of(meaning, scene.objects) for j, meaning in enumerate(meanings)]
                         for i, scene in enumerate(drawn)])  # fmt: skip
    ids = tokenizer(list(texts), padding=True, return_tensors="pt")
    return {"pixel_values": pixels(drawn), "input_ids": ids["input_ids"], "attention_mask": ids["attention_mask"],
            "also": also}  # fmt: skip


def contrastive_loss(model: Any, batch: dict[str, Tensor]) -> Tensor:
    """Return CLIP's loss, in which captions that are also right count as no mistakes.

    L = −½ (log softmax over texts + log softmax over images) of exp(s) · cos(image, text), on the diagonal
    """
    import torch
    from torch.nn.functional import cross_entropy

    inputs = {name: batch[name] for name in ("pixel_values", "input_ids", "attention_mask")}
    logits = model(**inputs).logits_per_image.masked_fill(batch["also"], -torch.inf)  # (B, B)
    target = torch.arange(len(logits), device=logits.device)
    loss: Tensor = (cross_entropy(logits, target) + cross_entropy(logits.T, target)) / 2
    return loss


def question_batch(tokenizer: Any, seed: int, size: int, number: int) -> dict[str, Tensor]:
    """Return what :func:`vqa_system.answer_loss` takes: of each scene, four questions as are measured, and lessons."""
    drawn, rng = _drawn(seed, number, size)
    rows = [(i, one) for i, scene in enumerate(drawn)
            for one in scenes.questions(scene, rng, 4) + scenes.lessons(scene, rng)]  # fmt: skip
    return answer_batch(tokenizer, pixels(drawn), [i for i, _ in rows], [one.question for _, one in rows],
                        [one.answer for _, one in rows], first=tokenizer.convert_tokens_to_ids("[DEC]"),
                        longest=LONGEST)  # fmt: skip


# --- Commands ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Kind:
    """One of the models: how it is made, what it learns from, and what its card says.

    Attributes:
        processor: Makes its processor.
        model: Processor and seed → the model before its training.
        loss: Model and batch → loss.
        batch: Tokenizer, seed, size and number → a batch.
        steps: Of the one that is shipped.
        size: Scenes of a step.
        learning_rate: Of embeddings, head and vectors, by AdamW.
        muon: Of the layers' matrices, by Muon.
        what: One sentence.
        limits: What it can't.
        eyes: Name of the captioner that it begins with, if any.
        shipped: Whether it lies in the package.
    """

    processor: Callable[[], Any]
    model: Callable[[Any, int], Any]
    loss: Callable[[Any, Any], Tensor]
    batch: Callable[[Any, int, int, int], dict[str, Tensor]]
    steps: int
    size: int
    learning_rate: float
    muon: float
    what: str
    limits: str
    eyes: str = ""
    shipped: bool = True


ON_GRID = ("It knows the eight colors, six shapes and two sizes of those scenes, on a grid of 16 pixels, up to four at "
           "a time; of photos it knows nothing.")  # fmt: skip
ANYWHERE = ("It knows the eight colors, six shapes and two sizes of those scenes, up to four objects on a grid of 16 "
            "pixels or up to three anywhere; of photos it knows nothing.")  # fmt: skip
KINDS = {
    "captions": Kind(blip_processor, new_captioner, caption_loss, caption_batch, 2400, 64, 1e-3, 0.006,
                     "Says what stands in a scene, from top to bottom and left to right.", ANYWHERE),
    "vqa": Kind(blip_processor, new_answerer, answer_loss, question_batch, 1500, 20, 1e-3, 0.006,
                "Answers questions about scenes: how many, which color, shape or size, is there, and where.",
                ON_GRID, eyes="grid"),
    "grid": Kind(blip_processor, lambda processor, seed: new_captioner(processor, seed, GRID_PATCH), caption_loss,
                 grid_caption_batch, 3000, 64, 2e-3, 0.02, "Says what stands on the grid; the other two begin with it.",
                 ON_GRID, shipped=False),
    "clip": Kind(clip_processor, new_clip, contrastive_loss, clip_batch, 2600, 128, 2e-3, 0.02,
                 "Says how well a text goes with a scene, for search and for classes without training.", ON_GRID,
                 eyes="grid"),
}  # fmt: skip


@dataclass
class TrainConfig:
    """Train one of the embedded models, and put it in its place."""

    model: Literal["captions", "vqa", "grid", "clip"] = "captions"
    """Which one; grid is a captioner that is not shipped, and vqa and clip begin with its eyes."""
    steps: int = 0
    """Steps; 0 is as many as the shipped one had."""
    batch_size: int = 0
    """Scenes of a step; 0 is as many as the shipped one had."""
    learning_rate: float = 0
    """Of embeddings, head and vectors, by AdamW; 0 is what the shipped one had."""
    muon: float = 0
    """Of the layers' matrices, by Muon; 0 is what the shipped one had."""
    output: str = field(default="", metadata=NOT_RECIPE)
    """Folder of the model; by default its place in the package, of grid outputs/multimodal_llm/models/grid."""
    seed: int = field(default=0, metadata=NOT_RECIPE)
    """Of weights and scenes."""
    threads: int = field(default=0, metadata=NOT_RECIPE)
    """CPU threads; 0 leaves it to PyTorch."""
    run: str = field(default="", metadata=NOT_RECIPE)
    """Name of the run's folder; by default the time."""
    resume: bool = field(default=False, metadata=NOT_RECIPE)
    """Go on where the run of this name stopped."""
    tracking: Literal["none", "wandb"] = field(default="none", metadata=NOT_RECIPE)
    """Mirror the figures to Weights & Biases."""

    def __post_init__(self) -> None:
        """Check the ranges, and fill in what the shipped model had."""
        check_range("steps", self.steps, 0)
        check_range("batch_size", self.batch_size, 0)
        check_range("learning_rate", self.learning_rate, 0)
        check_range("muon", self.muon, 0)
        check_range("seed", self.seed, 0, 2**31 - 1)
        check_range("threads", self.threads, 0)
        if self.resume and not self.run:
            raise InputError("resume needs the name of the run.", hint="--run NAME --resume true")


def train(config: TrainConfig) -> None:
    """Train; see :class:`TrainConfig`."""
    import torch

    set_threads(config.threads)
    kind = KINDS[config.model]
    if config.resume:
        check_resumable(OUTPUTS / PROJECT / config.run, config, also=("seed",))
    run = Run(PROJECT, MODULE, "train", config, name=config.run, resume=config.resume)
    processor = kind.processor()
    model = kind.model(processor, config.seed)
    size, steps = config.batch_size or kind.size, config.steps or kind.steps
    recipe = Recipe(steps, size, config.learning_rate or kind.learning_rate, muon=config.muon or kind.muon,
                    seed=config.seed, device="cpu")  # fmt: skip
    started = time.monotonic()
    fit(model, kind.loss, lambda number: kind.batch(processor.tokenizer, config.seed, size, number), recipe,
        run.folder, tracking=config.tracking, what=config.model)  # fmt: skip
    seconds = time.monotonic() - started  # of a run that was stopped, since it went on
    folder = Path(config.output) if config.output else place_of(config.model)
    model.to(torch.bfloat16).save_pretrained(folder)  # half the size, and nothing measurable lost
    processor.save_pretrained(folder)
    metrics = figures(config.model, folder)
    write_atomic(folder / "README.md", card(config, metrics, seconds, sum(w.numel() for w in model.parameters())))
    run.finish(model=f"builtin:{config.model}", data="builtin:scenes", seed=config.seed, metrics=metrics,
               seconds=seconds)  # fmt: skip
    (run.folder / CHECKPOINT).unlink(missing_ok=True)
    sys.stdout.write("".join(f"{name} {value:.4g}\n" for name, value in metrics.items()))
    sys.stdout.write(f"{folder}\n")


def card(config: TrainConfig, metrics: dict[str, float], seconds: float, weights: int) -> str:
    """Write the model card."""
    kind = KINDS[config.model]
    name = {"vqa": "BlipForQuestionAnswering", "clip": "CLIPModel"}.get(config.model, "BlipForConditionalGeneration")
    eyes = f" It began with the vision tower that `train --model {kind.eyes}` makes." if kind.eyes else ""
    rows = "".join(f"| {what} | {value:.4g} |\n" for what, value in metrics.items())
    size, steps = config.batch_size or kind.size, config.steps or kind.steps
    return f"""# builtin:{config.model}

{kind.what} transformers' `{name}`, {weights / 1e6:.2f} million weights, pictures of 64 × 64.{eyes}

- **Rebuild:** `{command_line(MODULE, "train", config)} --threads {config.threads}`
- **Data:** `scenes.py`, {steps:,} steps of {size} scenes of split train, drawn anew; nothing that people made.
- **Recipe:** Muon {config.muon or kind.muon:g} for the layers, AdamW {config.learning_rate or kind.learning_rate:g}
  for the rest, falling over the last 40 %; seed {config.seed}.
- **Took:** {seconds / 60:.0f} minutes with `--threads {config.threads}`, beside other work, on {hardware()}.

| figure on held-out scenes | |
|---|---|
{rows}
{kind.limits}
"""


def figures(name: str, folder: Path | None = None) -> dict[str, float]:
    """Measure a model on scenes that it has not learned from: what its own ``evaluate`` measures, and loose ones."""
    place = str(folder or place_of(name))
    if name in ("captions", "grid"):
        loose = scenes.loose_scenes("test", 300)
        rows = {split: blip_model.load_captioned("builtin:scenes", split=split) for split in ("test", "pairs")}
        rows["anywhere"] = [blip_model.CaptionedImage(str(i), scenes.SceneImage(scene), (scene.caption,))
                            for i, scene in enumerate(loose)]  # fmt: skip
        found, captioner = {}, blip_model.load_captioner(place)
        for split, its_rows in rows.items():
            its, _ = blip_model.measure(captioner.caption, its_rows, 64, objects=True)
            found |= {f"{what}, {split}": its[what] for what in ("exact", "object F1", "CIDEr-D")}
        return found
    if name == "vqa":
        splits = load_vqa(DataConfig()).splits
        prior = QuestionPrior(splits["train"])
        return vqa_system.measure(vqa_system.load_answerer(place), splits["test"], prior)[0]
    encoder = load_clip(place)
    return image_search.scene_recall(encoder) | zero_shot_classification.scene_accuracy(encoder)


@dataclass
class EvaluateConfig:
    """Measure an embedded model on scenes that it has not learned from."""

    model: Literal["captions", "vqa", "grid", "clip"] = "captions"
    """Which one."""
    folder: str = ""
    """Where it lies; by default its place in the package."""
    run: str = field(default="", metadata=NOT_RECIPE)
    """Name of the run's folder; by default the time."""


def evaluate(config: EvaluateConfig) -> None:
    """Measure; see :class:`EvaluateConfig`."""
    run = Run(PROJECT, MODULE, "evaluate", config, name=config.run)
    metrics = figures(config.model, Path(config.folder) if config.folder else None)
    name = config.folder or f"builtin:{config.model}"
    run.finish(model=name, data="builtin:scenes", seed=0, metrics=metrics)
    sys.stdout.write(json.dumps(metrics, indent=2) + "\n")


if __name__ == "__main__":
    run_commands({"train": train, "evaluate": evaluate}, module=MODULE, extra="multimodal")
