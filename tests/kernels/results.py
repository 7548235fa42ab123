# SPDX-License-Identifier: Apache-2.0
"""What each kernel did in the last run, one file for each under dist/kernels/, and the verifier's
limit.
"""

import json
from collections import Counter
from pathlib import Path

from tests.kernels.loader import Chosen, refusals
from tests.kernels.packages import Kernel

FOLDER = Path(__file__).resolve().parents[2] / "dist/kernels"
VERIFIER_LIMIT = 1_000_000
"""BPF_COMPLEXITY_LIMIT_INSNS: instructions that the verifier processes for one program."""
MAX_INSTRUCTIONS = VERIFIER_LIMIT // 2
"""Half of the limit: the count of one program doubles easily with another compiler or kernel."""


def write(kernel: Kernel, run: str, chosen: Chosen, **figures: int) -> None:
    """Write the programs, their instructions, the refusals and the rows of one recording.

    `figures` are what the run measured besides.
    """
    FOLDER.mkdir(parents=True, exist_ok=True)
    result = {
        "series": kernel.series,
        "version": kernel.version,
        "arch": kernel.arch,
        "run": run,
        "hooks": chosen.candidates,
        "refused": refusals(chosen.choices),
        "rows": Counter(row[0] for row in chosen.recording.rows().elements()),
        "instructions": chosen.recording.instructions,
        "figures": figures,
    }
    text = json.dumps(result, indent=1, sort_keys=True) + "\n"
    (FOLDER / f"{kernel.series}.{run}.json").write_text(text)


def assert_within_limit(instructions: dict[str, int]) -> None:
    """Fail if a program is above half of the verifier's limit, or was not measured."""
    assert all(instructions.values()), instructions
    above = {name: count for name, count in instructions.items() if count > MAX_INSTRUCTIONS}
    assert not above, f"above half of the verifier's limit of {VERIFIER_LIMIT}: {above}"
