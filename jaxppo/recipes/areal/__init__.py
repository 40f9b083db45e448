"""AReaL 1.0.4: `utils/functional/functional.py`, `trainer/ppo/`, `utils/data.py`.

There are three policies. `log_probs` are of the one that learns, `old_log_probs` of the
trainer before this update (AReaL's "proximal" policy), `rollout_log_probs` of the
sampler (its "behaviour" policy). Decoupled PPO is `ppo(..., weights=weights)`, with
weights from one of the `reject_...` or `clamp_...` functions.

Every loss is a mean over the tokens of the mask; a token that is rejected adds 0 and
still counts. No log-ratio is bounded: an infinite one of a token that counts makes loss
or gradient infinite or NaN. In AReaL one in padding does, too, as it masks after `exp`,
which hides a NaN from the loss but not from the gradient. Here padding has no
influence.
"""

from ._advantages import approx_kl as approx_kl
from ._advantages import batch_normalised as batch_normalised
from ._advantages import gae as gae
from ._advantages import group_centred as group_centred
from ._advantages import group_normalised as group_normalised
from ._advantages import leave_one_out as leave_one_out
from ._advantages import shaped_rewards as shaped_rewards
from ._advantages import token_rewards as token_rewards
from ._policy import loglinear_log_probs as loglinear_log_probs
from ._policy import m2po_mask as m2po_mask
from ._policy import ppo as ppo
from ._policy import sapo as sapo
from ._policy import sequence_ppo as sequence_ppo
from ._policy import sequence_sapo as sequence_sapo
from ._rejection import clamp_sequences_by_ratio as clamp_sequences_by_ratio
from ._rejection import clamp_tokens as clamp_tokens
from ._rejection import reject_sequences_by_kl as reject_sequences_by_kl
from ._rejection import reject_sequences_by_ratio as reject_sequences_by_ratio
from ._rejection import reject_tokens_by_kl as reject_tokens_by_kl
from ._rejection import reject_tokens_by_ratio as reject_tokens_by_ratio
from ._value import huber_value_loss as huber_value_loss
from ._value import value_loss as value_loss
