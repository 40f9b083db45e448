"""Language models by PPO and GRPO: model, weights, sampler, tasks, training, runs."""
