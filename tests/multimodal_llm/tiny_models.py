"""Models of the hub's own classes, small and untrained, saved as the hub has them."""

from pathlib import Path
from typing import Any

SIDE, WIDTH = 32, 16
WORDS = ("a an the of on is are there what how many which color shape picture photo dog cat red blue green circle "
         "square yes no zero one two three 1 2 3 runs sits").split()  # fmt: skip
SMALL = {"hidden_size": WIDTH, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}


def bert_tokenizer(*more: str) -> Any:
    from transformers import BertTokenizerFast

    letters = "abcdefghijklmnopqrstuvwxyz0123456789"
    pieces = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *more, *letters, *(f"##{c}" for c in letters),
              *".,?!", *(word for word in WORDS if len(word) > 1)]  # fmt: skip
    return BertTokenizerFast(vocab={piece: i for i, piece in enumerate(pieces)}, model_max_length=32)


def _saved(folder: Path, model: Any, processor: Any) -> str:
    model.eval().save_pretrained(folder)
    processor.save_pretrained(folder)
    return str(folder)


def _blip(folder: Path, name: str, seed: int) -> str:
    import torch
    import transformers
    from transformers.models.blip.image_processing_pil_blip import BlipImageProcessorPil

    tokenizer = bert_tokenizer("[DEC]")
    ids = tokenizer.convert_tokens_to_ids
    text = SMALL | {"vocab_size": len(tokenizer), "encoder_hidden_size": WIDTH, "max_position_embeddings": 32,
                    "bos_token_id": ids("[DEC]"), "eos_token_id": ids("[SEP]"), "sep_token_id": ids("[SEP]"),
                    "pad_token_id": 0, "hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0,
                    "initializer_range": 0.3}  # fmt: skip
    vision = SMALL | {"image_size": SIDE, "patch_size": 8, "initializer_range": 0.3}
    torch.manual_seed(seed)
    config = transformers.BlipConfig(vision_config=vision, text_config=text, projection_dim=WIDTH)
    images = BlipImageProcessorPil(size={"height": SIDE, "width": SIDE})
    return _saved(folder, getattr(transformers, name)(config), transformers.BlipProcessor(images, tokenizer))


def tiny_blip(folder: Path, seed: int = 0) -> str:
    """Save a ``BlipForConditionalGeneration``."""
    return _blip(folder, "BlipForConditionalGeneration", seed)


def tiny_blip_vqa(folder: Path, seed: int = 0) -> str:
    """Save a ``BlipForQuestionAnswering``."""
    return _blip(folder, "BlipForQuestionAnswering", seed)


def tiny_vilt(folder: Path, labels: tuple[str, ...] = ("yes", "no", "2", "red")) -> str:
    """Save a ``ViltForQuestionAnswering``."""
    import torch
    from transformers import ViltConfig, ViltForQuestionAnswering, ViltProcessor
    from transformers.models.vilt.image_processing_pil_vilt import ViltImageProcessorPil

    tokenizer = bert_tokenizer()
    torch.manual_seed(0)
    config = ViltConfig(**SMALL, vocab_size=len(tokenizer), image_size=SIDE, patch_size=8, max_image_length=-1,
                        max_position_embeddings=32, initializer_range=0.3, id2label=dict(enumerate(labels)),
                        label2id={label: i for i, label in enumerate(labels)}, hidden_dropout_prob=0.0)  # fmt: skip
    images = ViltImageProcessorPil(size={"shortest_edge": SIDE}, size_divisor=8)
    return _saved(folder, ViltForQuestionAnswering(config), ViltProcessor(images, tokenizer))


def tiny_git(folder: Path) -> str:
    """Save a ``GitForCausalLM``, which has its image before its text in one sequence."""
    import torch
    from transformers import GitConfig, GitForCausalLM, GitProcessor
    from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

    tokenizer = bert_tokenizer()
    torch.manual_seed(0)
    vision = SMALL | {"image_size": SIDE, "patch_size": 8}
    config = GitConfig(**SMALL, vocab_size=len(tokenizer), max_position_embeddings=64, vision_config=vision,
                       bos_token_id=2, eos_token_id=3, pad_token_id=0, initializer_range=0.3)  # fmt: skip
    images = CLIPImageProcessorPil(size={"height": SIDE, "width": SIDE}, do_center_crop=False)
    return _saved(folder, GitForCausalLM(config), GitProcessor(images, tokenizer))


def tiny_llava(folder: Path) -> str:
    """Save a ``LlavaForConditionalGeneration``, which chats."""
    import torch
    from transformers import CLIPVisionConfig, LlamaConfig, LlavaConfig, LlavaForConditionalGeneration, LlavaProcessor
    from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

    tokenizer = bert_tokenizer("<image>")
    tokenizer.add_special_tokens({"additional_special_tokens": ["<image>"]})
    torch.manual_seed(0)
    text = LlamaConfig(**SMALL, vocab_size=len(tokenizer), max_position_embeddings=128, bos_token_id=2, eos_token_id=3,
                       pad_token_id=0, initializer_range=0.3)  # fmt: skip
    vision = CLIPVisionConfig(**SMALL, image_size=SIDE, patch_size=8, projection_dim=WIDTH)
    config = LlavaConfig(vision_config=vision, text_config=text, image_token_index=5, image_token_id=5)
    template = ("{% for m in messages %}{% for c in m['content'] %}{% if c['type'] == 'image' %}<image> {% else %}"
                "{{ c['text'] }}{% endif %}{% endfor %}{% endfor %}")  # fmt: skip
    images = CLIPImageProcessorPil(size={"height": SIDE, "width": SIDE}, do_center_crop=False)
    processor = LlavaProcessor(images, tokenizer, patch_size=8, vision_feature_select_strategy="default",
                               chat_template=template, num_additional_image_tokens=1)  # fmt: skip
    return _saved(folder, LlavaForConditionalGeneration(config), processor)


def tiny_clip(folder: Path, seed: int = 0, **image_options: Any) -> str:
    """Save a ``CLIPModel``, whose processor scales the short side and cuts out the middle, as the hub's do."""
    import torch
    from transformers import CLIPConfig, CLIPModel, CLIPProcessor, CLIPTokenizerFast
    from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

    letters = [chr(c) for c in range(33, 127)]
    pieces = [*letters, *(f"{c}</w>" for c in letters), "re", "red</w>", "<|startoftext|>", "<|endoftext|>"]
    tokenizer = CLIPTokenizerFast(vocab={piece: i for i, piece in enumerate(pieces)},
                                  merges=[("r", "e"), ("re", "d</w>")], model_max_length=32)  # fmt: skip
    ids = tokenizer.convert_tokens_to_ids
    text = SMALL | {"vocab_size": len(tokenizer), "max_position_embeddings": 32, "initializer_range": 0.3,
                    "bos_token_id": ids("<|startoftext|>"), "eos_token_id": ids("<|endoftext|>"),
                    "pad_token_id": ids("<|endoftext|>")}  # fmt: skip
    vision = SMALL | {"image_size": SIDE, "patch_size": 8, "initializer_range": 0.3}
    torch.manual_seed(seed)
    model = CLIPModel(CLIPConfig(vision_config=vision, text_config=text, projection_dim=WIDTH))
    images = CLIPImageProcessorPil(**{"size": {"shortest_edge": SIDE}, "crop_size": SIDE, **image_options})
    return _saved(folder, model, CLIPProcessor(images, tokenizer))


def tiny_siglip(folder: Path, seed: int = 0) -> str:
    """Save a ``SiglipModel``, whose texts are padded to their full length."""
    import torch
    from transformers import SiglipConfig, SiglipModel, SiglipProcessor
    from transformers.models.siglip.image_processing_pil_siglip import SiglipImageProcessorPil

    tokenizer = bert_tokenizer()
    tokenizer.model_max_length = 64
    text = SMALL | {"vocab_size": len(tokenizer), "max_position_embeddings": 64, "projection_size": WIDTH}
    vision = SMALL | {"image_size": SIDE, "patch_size": 8}
    torch.manual_seed(seed)
    model = SiglipModel(SiglipConfig(vision_config=vision, text_config=text))
    torch.nn.init.constant_(model.logit_scale, 2.0)
    torch.nn.init.constant_(model.logit_bias, -1.0)
    images = SiglipImageProcessorPil(size={"height": SIDE, "width": SIDE})
    return _saved(folder, model, SiglipProcessor(images, tokenizer))


def tiny_layoutlmv3(folder: Path) -> str:
    """Save a LayoutLMv3 that answers from a page's words, whose tokens are single letters."""
    import torch
    from transformers import (
        LayoutLMv3Config,
        LayoutLMv3ForQuestionAnswering,
        LayoutLMv3ImageProcessorPil,
        LayoutLMv3Tokenizer,
    )

    letters = [chr(i) for i in range(33, 127)]
    names = ["<s>", "<pad>", "</s>", "<unk>", "<mask>", *letters, *(f"Ġ{letter}" for letter in letters), "Ġ"]
    torch.manual_seed(0)
    config = LayoutLMv3Config(
        vocab_size=len(names), hidden_size=24, num_hidden_layers=1, num_attention_heads=2, intermediate_size=32,
        coordinate_size=4, shape_size=4, max_position_embeddings=130, max_2d_position_embeddings=1024, input_size=32,
        patch_size=16, pad_token_id=1, bos_token_id=0, eos_token_id=2, num_labels=2, initializer_range=0.5,
    )  # fmt: skip
    vocabulary = {name: i for i, name in enumerate(names)}
    LayoutLMv3Tokenizer(vocab=vocabulary, merges=[], model_max_length=100).save_pretrained(folder)
    size = {"height": 32, "width": 32}
    return _saved(
        folder, LayoutLMv3ForQuestionAnswering(config), LayoutLMv3ImageProcessorPil(apply_ocr=True, size=size)
    )


def tiny_donut(folder: Path) -> str:
    """Save a Donut with a vocabulary of twelve tokens."""
    import torch
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import (
        DonutImageProcessorPil,
        DonutSwinConfig,
        MBartConfig,
        PreTrainedTokenizerFast,
        VisionEncoderDecoderConfig,
        VisionEncoderDecoderModel,
    )

    words = ["<s>", "<pad>", "</s>", "<unk>", "what", "?", "total"]
    words += ["<s_docvqa>", "<s_question>", "</s_question>", "<s_answer>", "</s_answer>"]
    inner = Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)}, unk_token="<unk>"))
    inner.pre_tokenizer = pre_tokenizers.Whitespace()
    PreTrainedTokenizerFast(
        tokenizer_object=inner, bos_token="<s>", pad_token="<pad>", eos_token="</s>", unk_token="<unk>",
        additional_special_tokens=words[7:],
    ).save_pretrained(folder)  # fmt: skip
    torch.manual_seed(0)
    vision = DonutSwinConfig(
        image_size=[64, 64], patch_size=4, embed_dim=8, depths=[1, 1], num_heads=[1, 2], window_size=4, num_channels=3
    )
    text = MBartConfig(
        vocab_size=len(words), d_model=16, decoder_layers=1, decoder_attention_heads=2, decoder_ffn_dim=16,
        is_decoder=True, add_cross_attention=True, max_position_embeddings=128, pad_token_id=1, bos_token_id=0,
        eos_token_id=2, init_std=0.5,
    )  # fmt: skip
    model = VisionEncoderDecoderModel(config=VisionEncoderDecoderConfig.from_encoder_decoder_configs(vision, text))
    model.config.decoder_start_token_id, model.config.pad_token_id = 0, 1
    return _saved(folder, model, DonutImageProcessorPil(size={"height": 64, "width": 64}))
