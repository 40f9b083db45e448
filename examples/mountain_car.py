"""Learn MountainCar-v0, where no reward tells one action from another at first.

python examples/mountain_car.py --help
python examples/mountain_car.py --seeds 5 --out runs/five

PPO fails on it (-200: no episode finds the flag) unless observations or rewards are
scaled. Either will do: with both five seeds end at -102, with `--no-normalise-rewards`
at -104, with `--no-normalise-obs` at -117, with neither at -200.
"""

from control import environments, runs

OPTIONS = runs.Options(
    total_steps=500_000,
    num_envs=16,
    num_epochs=10,
    num_minibatches=8,
    learning_rate=1e-3,
    gae_lambda=0.98,
    entropy_coef=0.0,
    normalise_obs=True,
    normalise_rewards=True,
)

if __name__ == "__main__":
    options = runs.parse(OPTIONS, __doc__)
    runs.train("mountain_car", environments.mountain_car(), options, goal=-110)
