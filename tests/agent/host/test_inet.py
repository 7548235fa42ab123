# SPDX-License-Identifier: Apache-2.0
"""Addresses in 16 bytes: which are IPv4, which mean another host in each namespace."""

import ipaddress

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ktrace_agent.host.inet import (
    MAPPED,
    address_text,
    are_ipv4,
    are_local_to_netns,
    is_ipv4,
    is_local_to_netns,
)


def packed(text: str) -> bytes:
    address = ipaddress.ip_address(text)
    return address.packed if address.version == 6 else MAPPED + address.packed


LOCAL = ("127.0.0.1", "127.255.255.255", "::1", "fe80::1", "febf::1")
GLOBAL = ("126.255.255.255", "128.0.0.1", "::", "::2", "fec0::1", "fe7f::1", "ff80::1", "10.0.0.1")


@pytest.mark.parametrize("text", LOCAL)
def test_loopback_and_link_local_addresses_are_local_to_a_namespace(text: str):
    assert is_local_to_netns(packed(text))


@pytest.mark.parametrize("text", GLOBAL)
def test_other_addresses_are_not(text: str):
    assert not is_local_to_netns(packed(text))


ADDRESSES = st.one_of(
    st.sampled_from([*LOCAL, *GLOBAL]).map(packed),
    st.binary(min_size=16, max_size=16),
    st.binary(min_size=4, max_size=4).map(MAPPED.__add__),
    st.binary(min_size=15, max_size=15).map(b"\xfe".__add__),
)


@given(st.lists(ADDRESSES, max_size=20))
def test_both_forms_of_a_rule_agree(addresses: list[bytes]):
    octets = np.frombuffer(b"".join(addresses), np.uint8).reshape(-1, 16)
    assert are_ipv4(octets).tolist() == [*map(is_ipv4, addresses)]
    assert are_local_to_netns(octets).tolist() == [*map(is_local_to_netns, addresses)]


def test_text_is_that_of_rows():
    assert address_text(packed("192.0.2.1")) == "192.0.2.1"
    assert address_text(packed("2001:db8::1")) == "[2001:db8::1]"
