"""SkyRL, revision a9564572: `skyrl_train/utils/ppo_utils.py`, and `tinker`'s losses.

Log-ratios are held within 20 nats, but for the covariance losses' and those of `kl`.
SkyRL multiplies the advantages by a token's share in the reduction, on a whole
mini-batch, then sums: here the aggregator divides, which is the same for all losses but
`clip_cov` and `kl_cov`. It counts all rows and all prompts, those without a token
included, and multiplies by the mask, so that a NaN under it is a NaN in loss and
gradient: not here. Rewards under the mask, which it adds to the others, are left out.
"""

from . import tinker as tinker
from ._advantages import gae as gae
from ._advantages import grpo_advantages as grpo_advantages
from ._advantages import maxrl_advantages as maxrl_advantages
from ._advantages import (
    reinforce_plus_plus_advantages as reinforce_plus_plus_advantages,
)
from ._advantages import rloo_advantages as rloo_advantages
from ._correction import outlier_mask as outlier_mask
from ._correction import ratio_metrics as ratio_metrics
from ._correction import sequence_mask as sequence_mask
from ._correction import sequence_weights as sequence_weights
from ._correction import token_mask as token_mask
from ._correction import token_weights as token_weights
from ._correction import trajectory_mask as trajectory_mask
from ._covariance import clip_cov as clip_cov
from ._covariance import kl_cov as kl_cov
from ._policy import cispo as cispo
from ._policy import cross_entropy as cross_entropy
from ._policy import dppo_kl as dppo_kl
from ._policy import dppo_tv as dppo_tv
from ._policy import gspo as gspo
from ._policy import importance_sampling as importance_sampling
from ._policy import prompt_mean as prompt_mean
from ._policy import regular as regular
from ._policy import rollout_is as rollout_is
from ._policy import row_mean as row_mean
from ._policy import sapo as sapo
from ._value import critic as critic
from ._value import kl as kl
from ._value import kl_k3 as kl_k3
