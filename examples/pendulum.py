"""Learn to swing Pendulum-v1 up with PPO: the same loop on continuous actions.

python examples/pendulum.py --help
python examples/pendulum.py --seeds 5 --out runs/five
"""

from control import environments, runs

OPTIONS = runs.Options(
    total_steps=200_000,
    num_envs=32,
    num_steps=200,
    num_epochs=10,
    num_minibatches=16,
    learning_rate=1e-3,
    gamma=0.95,
    entropy_coef=0.0,
    continuous="normal",
    normalise_obs=True,
    normalise_rewards=True,
)

if __name__ == "__main__":
    options = runs.parse(OPTIONS, __doc__)
    runs.train("pendulum", environments.pendulum(), options, goal=-200)
