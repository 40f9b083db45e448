"""Teach a language model by GRPO, GSPO, PPO, ...; SmolLM2 on a laptop by default.

python examples/train_llm.py --help
python examples/train_llm.py --algorithm gspo --out runs/gspo
python examples/train_llm.py --model path/to/Qwen3-0.6B --mesh fsdp=4,tensor=2
"""

if __name__ == "__main__":  # the process that computes rewards needs none of this
    from llm import runs

    runs.train(runs.parse(runs.Options(), __doc__))
