# SPDX-License-Identifier: Apache-2.0
"""Starts and stops a cluster that stays up.

python -m tests.cluster up|down|status [--instance NAME]
python -m tests.cluster image DOCKERFILE TAG [--target STAGE] [--instance NAME]
"""

import argparse
import sys
from pathlib import Path

from tests.cluster import binaries, images
from tests.cluster.cluster import Cluster
from tests.cluster.s3 import BUCKET, ENDPOINT, IDENTITIES


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.cluster", description=__doc__)
    parser.add_argument("--instance", default="dev", help="name of the cluster (default: dev)")
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("up", help="build what is missing, start, wait until Ready")
    commands.add_parser("down", help="stop it and remove all that it left")
    commands.add_parser("status", help="say whether it runs, and how to use it")
    image = commands.add_parser("image", help="build an image and load it on all nodes")
    image.add_argument("dockerfile", type=Path)
    image.add_argument("tag", help="full name, such as localhost/ktrace-agent:dev")
    image.add_argument("--target", default="", help="stage of the Dockerfile")
    chosen = parser.parse_args()
    cluster = Cluster(chosen.instance, say=_say)
    if chosen.command == "up":
        for name in binaries.PROGRAMS:
            binaries.program(name, _say)
        cluster.up()
        print(_usage(cluster))
    elif chosen.command == "down":
        cluster.down()
    elif chosen.command == "image":
        cluster.load_image(images.build(chosen.dockerfile, chosen.tag, chosen.target, say=_say))
    elif not cluster.running:
        _say(f"{cluster.instance} is not up")
        return 1
    else:
        print(_usage(cluster))
    return 0


def _say(line: str) -> None:
    print(f"cluster: {line}", file=sys.stderr, flush=True)


def _usage(cluster: Cluster) -> str:
    nodes = " ".join(node.name for node in cluster.nodes)
    return f"""
export KUBECONFIG={cluster.kubeconfig}
export PATH={cluster.bin}:$PATH

kubectl get nodes -o wide
node-a ip addr          # any command on a node: {nodes} control
state    {cluster.state}
shared   {cluster.shared} is the same folder on all nodes
audit    {cluster.control.audit_log}
S3       {ENDPOINT} for pods, {cluster.s3().endpoint} from here, bucket {BUCKET}
         keys of {", ".join(IDENTITIES)}: {cluster.state}/s3/identities.json"""


if __name__ == "__main__":
    sys.exit(main())
