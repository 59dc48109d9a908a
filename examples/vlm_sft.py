"""Fine-tuning a LLaVA-like model on what the image tells: CAL's weights, or PRIOR's, on the tokens of the answers.

    python examples/vlm_sft.py --model llava-hf/llava-1.5-7b-hf --data rows.jsonl --out runs/vlm --rule cal

Each line of rows.jsonl is {"image": "cat.png", "prompt": "USER: <image>\\nWhat is it? ASSISTANT: ", "answer": "A cat."}. The
nll of every answer is computed once with a blanked image; a token that the image makes likelier then counts more. Pixels are
made when a row is read: stored, those of a picture take a megabyte and more.
"""

import argparse
from functools import partial
from pathlib import Path
from typing import Any

import datasets
from PIL import Image
from transformers import AutoModelForImageTextToText, AutoProcessor, TrainingArguments

import tokensieve as ts

RULES = {"cal": {}, "prior": {"reference": "ablated_nll"}, "clm": {}}


def tokens(row: dict[str, Any], folder: Path, processor: Any) -> dict[str, Any]:
    """``input_ids`` with a placeholder for each feature of the image, ``labels`` of the answer only, and where the image is."""
    path = str(folder / row["image"])
    prompt = processor(images=[Image.open(path).convert("RGB")], text=row["prompt"])["input_ids"][0]
    tokenizer = processor.tokenizer
    answer = [*tokenizer(row["answer"], add_special_tokens=False).input_ids, tokenizer.eos_token_id]
    return {"input_ids": [*prompt, *answer], "labels": [-100] * len(prompt) + answer, "path": path}


def with_pixels(rows: dict[str, Any], processor: Any) -> dict[str, Any]:
    """``pixel_values`` of each row, [1, C, H, W]: what the model is fed beside the columns that are stored."""
    images = [Image.open(path).convert("RGB") for path in rows["path"]]
    made = [processor.image_processor([image], return_tensors="np")["pixel_values"] for image in images]
    return {**rows, "pixel_values": made}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name in ("model", "data", "out"):
        parser.add_argument(f"--{name}", required=True)
    parser.add_argument("--rule", choices=RULES, default="cal")
    parser.add_argument("--max_steps", type=int, default=-1)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--use_cpu", action="store_true")
    options = parser.parse_args()

    processor = AutoProcessor.from_pretrained(options.model)
    model = AutoModelForImageTextToText.from_pretrained(options.model)
    rows = datasets.load_dataset("json", data_files=options.data, split="train")
    made = {"folder": Path(options.data).parent, "processor": processor}
    rows = rows.map(tokens, fn_kwargs=made, remove_columns=rows.column_names)
    rows = rows.with_transform(partial(with_pixels, processor=processor))
    rule = ts.objective(options.rule, **RULES[options.rule])
    if "ablated_nll" in rule.needs:
        device = "cpu" if options.use_cpu else None
        rows = rows.add_column("ablated_nll", ts.ablated_nll(model, rows, batch_rows=options.batch, device=device))
    args = TrainingArguments(
        options.out,
        per_device_train_batch_size=options.batch,
        max_steps=options.max_steps,
        use_cpu=options.use_cpu,
        bf16=not options.use_cpu,
        remove_unused_columns=False,
        report_to="none",
    )
    trainer = ts.SelectiveTrainer(model, args, train_dataset=rows, objective=rule, processing_class=processor)
    trainer.train()
    trainer.save_model()


if __name__ == "__main__":
    main()
