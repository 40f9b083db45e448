"""OpenRLHF 0.11.2: `models/loss.py`, `models/utils.py`, `experience_maker.py`.

PPO's log-ratio is held within 20 nats; GSPO's, the sampler's and the metric `ppo_kl`'s
are not. Every KL estimate is held within 10 nats. OpenRLHF multiplies by the mask, so
that a NaN under it is a NaN in loss and gradient, and divides 0 by 0 where nothing
counts: not here. A batch's tokens are counted over the whole optimiser step: merge the
`Mean`s of its parts.
"""

from ._advantages import cumulative_returns as cumulative_returns
from ._advantages import dr_grpo_advantages as dr_grpo_advantages
from ._advantages import flash_reinforce_advantages as flash_reinforce_advantages
from ._advantages import gae as gae
from ._advantages import group_norm_advantages as group_norm_advantages
from ._advantages import reinforce_advantages as reinforce_advantages
from ._advantages import reinforce_baseline_advantages as reinforce_baseline_advantages
from ._advantages import rloo_advantages as rloo_advantages
from ._advantages import stop_properly_penalty as stop_properly_penalty
from ._advantages import token_rewards as token_rewards
from ._advantages import whiten as whiten
from ._correction import clip_weights as clip_weights
from ._correction import divergence_weights as divergence_weights
from ._correction import mask_weights as mask_weights
from ._correction import sequence_divergence_weights as sequence_divergence_weights
from ._correction import sequence_mask_weights as sequence_mask_weights
from ._kl import adaptive_kl as adaptive_kl
from ._kl import approx_kl as approx_kl
from ._kl import unbiased_gradient_kl as unbiased_gradient_kl
from ._policy import gspo as gspo
from ._policy import ppo as ppo
from ._policy import value_loss as value_loss
