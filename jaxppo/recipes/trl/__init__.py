"""TRL 1.16.0: `GRPOTrainer`, `RLOOTrainer` and the experimental GMPO.

A training loss is a sum of terms, each aggregated on its own: `{"policy": dapo(...)[0],
"kl": kl_penalty(...)[0], "entropy": entropy_bonus(...)[0]}`. TRL bounds no log-ratio
(but VESPO's), divides losses by sequence by all rows, those without a token included,
and multiplies by the mask, so that a NaN under it is a NaN in the loss: not here.

`weights` multiply a policy loss per token or sequence; its denominator stays. They
carry all that leaves tokens out, too: `jnp.where(off_policy_mask(...) &
jaxppo.top_entropy_mask(...), token_truncate(...)[0], 0)`. They never touch the KL.
"""

from ._advantages import batch_advantages as batch_advantages
from ._advantages import gdpo_advantages as gdpo_advantages
from ._advantages import group_advantages as group_advantages
from ._advantages import normalised_rloo_advantages as normalised_rloo_advantages
from ._advantages import penalised_rewards as penalised_rewards
from ._advantages import rloo_advantages as rloo_advantages
from ._advantages import summed_rewards as summed_rewards
from ._advantages import unscaled_advantages as unscaled_advantages
from ._clipped import bnpo as bnpo
from ._clipped import dapo as dapo
from ._clipped import dr_grpo as dr_grpo
from ._clipped import gmpo as gmpo
from ._clipped import grpo as grpo
from ._clipped import gspo as gspo
from ._clipped import luspo as luspo
from ._clipped import rloo as rloo
from ._correction import off_policy_mask as off_policy_mask
from ._correction import sequence_mask as sequence_mask
from ._correction import sequence_truncate as sequence_truncate
from ._correction import token_mask as token_mask
from ._correction import token_truncate as token_truncate
from ._terms import bias_corrected_kl as bias_corrected_kl
from ._terms import entropy_bonus as entropy_bonus
from ._terms import kl as kl
from ._terms import kl_penalty as kl_penalty
from ._weighted import cispo as cispo
from ._weighted import sapo as sapo
from ._weighted import vespo as vespo
