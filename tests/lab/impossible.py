# SPDX-License-Identifier: Apache-2.0
"""What a scene raises that cannot be made here."""


class Impossible(Exception):
    """This host cannot make the scene; the text says why."""
