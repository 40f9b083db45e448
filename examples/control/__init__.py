"""Control by PPO: environments, policies, the training loop, and runs of it.

Import this before anything runs on JAX: it sets a flag that XLA reads once.
"""

import os

# Networks this small run no faster on several threads, and fewer of them wait for each
# other: on 2 cores, XLA's pool deadlocks now and then (PyAutoLabs/PyAutoFit#1528; where
# we saw it happen, it was batched LAPACK: see runs.py).
if "xla_cpu_multi_thread_eigen" not in os.environ.get("XLA_FLAGS", ""):
    os.environ["XLA_FLAGS"] = (
        os.environ.get("XLA_FLAGS", "") + " --xla_cpu_multi_thread_eigen=false"
    )
