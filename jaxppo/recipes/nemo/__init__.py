"""NeMo-RL, revision 7ea279ab: `algorithms/loss/loss_functions.py` and their kin.

Policy ratios and importance weights have no bound. NeMo multiplies by the mask, so that
a NaN or an overflow under it is a NaN in loss and gradient: not here. It divides by
`sample_mask`'s samples, those without a token included, so `row_mean` is its sequence
loss; where a sample is out by `sample_mask`, `jaxppo.sequence_mean` is. It adds 1e-8 to
its counts, which is nothing beside a count of 1.

`ClippedPGLossFn` is a sum: one of the policy losses, plus `kl_penalty`, plus
`positive_nll` times its coefficient (0 by default). Its metrics are those of the parts
and of `diagnostics`.
"""

from ._advantages import distillation_advantages as distillation_advantages
from ._advantages import gae as gae
from ._advantages import gdpo_advantages as gdpo_advantages
from ._advantages import group_advantages as group_advantages
from ._advantages import leave_one_out_advantages as leave_one_out_advantages
from ._advantages import raw_reward_advantages as raw_reward_advantages
from ._advantages import (
    reinforce_plus_plus_advantages as reinforce_plus_plus_advantages,
)
from ._advantages import token_rewards as token_rewards
from ._correction import diagnostics as diagnostics
from ._correction import icepop_weights as icepop_weights
from ._correction import importance_weights as importance_weights
from ._correction import sequence_masked_weights as sequence_masked_weights
from ._correction import sequence_weights as sequence_weights
from ._correction import truncated_weights as truncated_weights
from ._penalties import kl as kl
from ._penalties import kl_penalty as kl_penalty
from ._penalties import off_policy_kl as off_policy_kl
from ._penalties import positive_nll as positive_nll
from ._penalties import score_weighted_kl as score_weighted_kl
from ._policy import cispo as cispo
from ._policy import gspo as gspo
from ._policy import on_policy as on_policy
from ._policy import ppo as ppo
from ._policy import reinforce as reinforce
from ._policy import row_mean as row_mean
from ._policy import value_loss as value_loss
