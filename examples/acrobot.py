"""Learn to swing Acrobot-v1 up, with PPO on observations scaled as they are seen.

python examples/acrobot.py --help
python examples/acrobot.py --seeds 5 --out runs/five
"""

from control import environments, runs

OPTIONS = runs.Options(
    total_steps=300_000,
    num_envs=16,
    learning_rate=1e-3,
    normalise_obs=True,
)

if __name__ == "__main__":
    options = runs.parse(OPTIONS, __doc__)
    runs.train("acrobot", environments.acrobot(), options, goal=-85)
