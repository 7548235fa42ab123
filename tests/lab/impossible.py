# SPDX-License-Identifier: Apache-2.0
"""What a scene raises that cannot be made here."""


class Impossible(Exception):
    """Raised if this host cannot play the scene; the text is the reason."""
