"""Tiny vision-language models with random weights, and rows for them: text around images of random pixels."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from datasets import Dataset

VOCAB, IMAGE = 97, 96
PATCHES = 4  # placeholders of an image: 2 x 2 patches of 4 x 4 pixels
TEXT = {
    "vocab_size": VOCAB,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "max_position_embeddings": 64,
    "initializer_range": 0.3,
    "tie_word_embeddings": False,
}
VISION = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2}


def llava(*, dtype: torch.dtype = torch.float32, seed: int = 0) -> Any:
    """CLIP's tower, LLaVA's projector, a Llama. In float64 throughout, if asked."""
    from tiny import in_float64
    from transformers import CLIPVisionConfig, LlamaConfig, LlavaConfig, LlavaForConditionalGeneration

    tower = CLIPVisionConfig(**VISION, image_size=8, patch_size=4, projection_dim=16, initializer_range=0.3)
    config = LlavaConfig(
        vision_config=tower,
        text_config=LlamaConfig(**TEXT, bos_token_id=0, eos_token_id=0),
        image_token_index=IMAGE,
        vision_feature_layer=-1,
        initializer_range=0.3,
        tie_word_embeddings=False,
    )
    torch.manual_seed(seed)
    model = LlavaForConditionalGeneration(config).to(dtype)
    return in_float64(model) if dtype == torch.float64 else model


def qwen() -> Any:
    """Qwen2.5-VL: patches of several images in one list, their grid, and positions of three kinds."""
    from transformers import Qwen2_5_VLConfig, Qwen2_5_VLForConditionalGeneration

    tower = {"depth": 2, "hidden_size": 16, "intermediate_size": 16, "num_heads": 2, "out_hidden_size": 32}
    tower |= {"patch_size": 4, "window_size": 16, "spatial_merge_size": 1, "fullatt_block_indexes": [1]}
    rope = {"rope_type": "default", "mrope_section": [2, 3, 3], "rope_theta": 10000.0}
    config = Qwen2_5_VLConfig(
        text_config={**TEXT, "rope_parameters": rope, "bos_token_id": 0, "eos_token_id": 0},
        vision_config=tower,
        image_token_id=IMAGE,
        video_token_id=IMAGE - 1,
        vision_start_token_id=IMAGE - 2,
        vision_end_token_id=IMAGE - 3,
        tie_word_embeddings=False,
    )
    torch.manual_seed(0)
    return Qwen2_5_VLForConditionalGeneration(config)


def rows(num_rows: int = 8, length: int = 18, seed: int = 0, kind: str = "llava", **columns: Any) -> Dataset:
    """Rows of one or two images, the last of none; lengths differ by a few tokens. Labels are left to default."""
    rng = np.random.default_rng(seed)
    made: dict[str, list[Any]] = {"input_ids": [], "pixel_values": []}
    for i in range(num_rows):
        images = 0 if i == num_rows - 1 else 1 + i % 2
        ids = rng.integers(1, IMAGE - 4, length - i % 3).tolist()
        for n in range(images):
            ids[1 + n * (PATCHES + 1) : 1 + n * (PATCHES + 1) + PATCHES] = [IMAGE] * PATCHES
        made["input_ids"].append(ids)
        shape = (images, 3, 8, 8) if kind == "llava" else (images * PATCHES, 3 * 2 * 4 * 4)
        made["pixel_values"].append(rng.normal(size=shape).astype(np.float32).tolist() if images else None)
        if kind == "qwen":
            made.setdefault("image_grid_thw", []).append([[1, 2, 2]] * images or None)
            made.setdefault("mm_token_type_ids", []).append([int(t == IMAGE) for t in ids])
    return Dataset.from_dict({**made, **columns})
