# SPDX-License-Identifier: Apache-2.0
"""Before an uninstall: deletes all agent pods and removes the finalizers that would block them."""

import logging

from ktrace_operator.errors import Denied
from ktrace_operator.kube.client import Kube
from ktrace_operator.kube.lease import Lease
from ktrace_operator.kube.rate_limit import TokenBucket
from ktrace_operator.kube.transport import Transport, connect
from ktrace_operator.settings import Settings

SECONDS = 120
"""Length of the Lease that the release takes. No operator acts during it; the chart's uninstall
must be over by then."""

logger = logging.getLogger(__name__)


def release_all(settings: Settings) -> None:
    """Deletes all agent pods of the served namespaces (SIGTERM first) and their finalizers.

    Takes the Lease first, so that an operator that is still running creates no new pods. A
    namespace without rights (perhaps already deleted) does not stop the others: Denied is raised
    after all of them.
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
            logger.warning("%s: agent pods cannot be released: %s", namespace, error)
    if denied is not None:
        raise denied


def _release(kube: Kube, namespace: str) -> None:
    pods = kube.agents(namespace)
    for pod in pods:
        if pod.deleting is None:
            kube.delete_agent(pod)
        if pod.held:
            kube.release(pod)
    logger.info("%s: %d agent pods released", namespace, len(pods))
