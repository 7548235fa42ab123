# SPDX-License-Identifier: Apache-2.0
"""Before the operator goes for good: no pod stays, and no finalizer that nobody would take off."""

import logging

from ktrace_operator.errors import Denied
from ktrace_operator.kube.client import Kube
from ktrace_operator.kube.lease import Lease
from ktrace_operator.kube.rate_limit import TokenBucket
from ktrace_operator.kube.transport import Transport, connect
from ktrace_operator.settings import Settings

SECONDS = 120
"""How long no operator acts after the Lease was taken: it is to be uninstalled by then."""

logger = logging.getLogger(__name__)


def release_all(settings: Settings) -> None:
    """Deletes all agents' pods of the served namespaces (SIGTERM first) and lets go of them.

    The Lease is taken first, so that an operator that still runs makes no new ones. Denied is
    raised at the end: a namespace without rights (deleted, perhaps) keeps no finalizer elsewhere.
    """
    bucket = TokenBucket(settings.writes_per_second, settings.writes_per_second)
    kube = Kube(Transport(connect(pool=1), bucket))
    if settings.lease.enabled:
        long = settings.lease.model_copy(update={"duration_seconds": SECONDS})
        Lease(kube, long, "release").seize()
    denied: Denied | None = None
    for namespace in settings.namespaces:
        try:
            _release(kube, namespace)
        except Denied as error:
            denied = denied or error
            logger.warning("%s: agents' pods cannot be let go: %s", namespace, error)
    if denied is not None:
        raise denied


def _release(kube: Kube, namespace: str) -> None:
    pods = kube.agents(namespace)
    for pod in pods:
        if pod.deleting is None:
            kube.delete_agent(pod)
        if pod.held:
            kube.release(pod)
    logger.info("%s: %d agents' pods were let go", namespace, len(pods))
