"""ROLL at commit 8eb27cc2: `roll/pipeline/rlvr`, `roll/utils`.

No log-ratio is bounded; the penalty's k3 is held at 10. Unless told otherwise, a loss
is the mean over the sequences that have a token left.

Metrics have ROLL's names, but for two things. ROLL ends a name with `@sum`, `@max` or
`@min` to say how it merges; here the metric's type says so. And ROLL writes the loss's
name twice before the metrics of CISPO and Kimi (`actor/cispo_cispo_...`); here it
stands once (`actor/cispo_...`).

In ROLL the shares that TIS, TOPR and CISPO clip, and what Kimi's loss logs, are means
over padding, too; here they are of the tokens that count. ROLL multiplies by its masks,
so that a NaN in padding makes its loss NaN. Here it does so only in `ppo_token_mean`
and `gae`, which keep these faults.
"""

from ._advantages import gae as gae
from ._advantages import group_advantages as group_advantages
from ._advantages import masked_whiten as masked_whiten
from ._advantages import reinforce_advantages as reinforce_advantages
from ._correction import is_weights as is_weights
from ._correction import probability_difference as probability_difference
from ._correction import train_infer_metrics as train_infer_metrics
from ._critic import value_loss as value_loss
from ._kl import kl as kl
from ._kl import kl_abs as kl_abs
from ._kl import kl_k3 as kl_k3
from ._kl import kl_mse as kl_mse
from ._policy import cispo as cispo
from ._policy import cispo_unified as cispo_unified
from ._policy import kimi15 as kimi15
from ._policy import ppo as ppo
from ._policy import ppo_sequence as ppo_sequence
from ._policy import ppo_token_mean as ppo_token_mean
from ._policy import sequence_mean_token_sum_norm as sequence_mean_token_sum_norm
from ._policy import tis as tis
from ._policy import topr as topr
from ._policy import unmasked_token_mean as unmasked_token_mean
from ._policy import vanilla as vanilla
