"""SFT with TRL on the tokens worth learning: what would be ``trl.SFTTrainer(...)`` is one other line.

    pip install 'tokensieve[trl]'
    python examples/trl_sft.py --model Qwen/Qwen2.5-0.5B --data chats.jsonl --out runs/sft

Each line of chats.jsonl is {"prompt": ..., "completion": ..., "weight": 0.5} or {"messages": [...]}, as TRL has it; "weight"
may be left out. Prompts are not trained on; the rule weighs the tokens of the answers, and the weight of a row multiplies it.
"""

import argparse

import datasets
import trl

import tokensieve as ts


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name in ("model", "data", "out"):
        parser.add_argument(f"--{name}", required=True)
    parser.add_argument("--objective", default="dft", help="one of docs/objectives.md")
    parser.add_argument("--max_steps", type=int, default=-1)
    parser.add_argument("--max_length", type=int, default=1024)
    parser.add_argument("--use_cpu", action="store_true")
    options = parser.parse_args()

    args = trl.SFTConfig(
        options.out,
        packing=True,
        max_length=options.max_length,
        max_steps=options.max_steps,
        use_cpu=options.use_cpu,
        bf16=not options.use_cpu,
        report_to="none",
    )
    rows = datasets.load_dataset("json", data_files=options.data, split="train")
    rule = ts.objective(options.objective)
    trainer = ts.SelectiveSFTTrainer(options.model, args, train_dataset=rows, objective=rule)  # was: trl.SFTTrainer
    trainer.train()
    trainer.save_model()


if __name__ == "__main__":
    main()
