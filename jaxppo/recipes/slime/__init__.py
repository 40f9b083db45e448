"""slime, revision 624b824a: `utils/ppo_utils.py`, `megatron_utils/loss.py`, `mis.py`.

No guard on any log-ratio but MIS's, of 20 nats. slime multiplies by the mask, so that a
NaN under it is a NaN in loss and gradient: not here. Its reduction is the mean over
rows of token means (rows without a token included), or with
`--calculate-per-token-loss` the mean over tokens; metrics and KL and entropy terms are
reduced in the same way. Rejected tokens stay in the denominator.
"""

from ._advantages import gae as gae
from ._advantages import group_advantages as group_advantages
from ._advantages import (
    reinforce_plus_plus_baseline_advantages as reinforce_plus_plus_baseline_advantages,
)
from ._advantages import reinforce_plus_plus_returns as reinforce_plus_plus_returns
from ._advantages import token_rewards as token_rewards
from ._advantages import whitened as whitened
from ._correction import icepop as icepop
from ._correction import mis_mask as mis_mask
from ._correction import mis_veto as mis_veto
from ._correction import mis_weights as mis_weights
from ._correction import opsm as opsm
from ._correction import tis as tis
from ._kl import kl as kl
from ._kl import low_var_kl as low_var_kl
from ._kl import unbiased_kl as unbiased_kl
from ._policy import cispo as cispo
from ._policy import gspo as gspo
from ._policy import ppo as ppo
from ._policy import row_mean as row_mean
from ._policy import value_loss as value_loss
