"""Learn to balance CartPole-v1 with PPO, on one core, in seconds.

python examples/cartpole.py --help
python examples/cartpole.py --seeds 5 --out runs/five
"""

from control import environments, runs

OPTIONS = runs.Options(
    total_steps=100_000,
    num_envs=16,
    num_steps=128,
    num_epochs=10,
    num_minibatches=8,
    learning_rate=1e-3,
    gamma=0.98,
    gae_lambda=0.9,
    entropy_coef=0.0,
)

if __name__ == "__main__":
    options = runs.parse(OPTIONS, __doc__)
    runs.train("cartpole", environments.cartpole(), options, goal=475)
