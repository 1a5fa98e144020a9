"""The handshake by itself: every option, right and wrong."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from uxk_nbd_server.handshake import (
    OPTION_MAX_BYTES,
    OPTIONS_MAX,
    SKIP_MAX_BYTES,
    UNSENT_MAX_BYTES,
    ExportInfo,
    Handshake,
    TlsPolicy,
)
from uxk_nbd_server.tests.client import go_data, meta, text
from uxk_nbd_server.wire import OPTION, OPTION_MAGIC, OPTION_REPLY, OPTION_REPLY_MAGIC, Option, Rep, Tx

FLAGS = Tx.HAS_FLAGS | Tx.SEND_FLUSH
EXPORTS = {
    "disk": ExportInfo("disk", "the first", 1 << 30, FLAGS, 512, 4096, 32 << 20),
    "other": ExportInfo("other", "", 1 << 20, FLAGS | Tx.READ_ONLY, 4096, 4096, 32 << 20),
}
NO_ZEROES = b"\0\0\0\3"


def handshake(tls: TlsPolicy = "off", flags: bytes = NO_ZEROES) -> Handshake:
    made = Handshake(lambda name: EXPORTS.get(name or "disk"), lambda: list(EXPORTS.values()), tls)
    assert made.receive(flags) == b""
    return made


def option(number: int, data: bytes = b"") -> bytes:
    return OPTION.pack(OPTION_MAGIC, number, len(data)) + data


def answers(data: bytes) -> list[tuple[int, int, bytes]]:
    """Option, type and data of each reply."""
    found = []
    while data:
        magic, number, kind, length = OPTION_REPLY.unpack_from(data)
        assert magic == OPTION_REPLY_MAGIC
        found.append((number, kind, data[OPTION_REPLY.size : OPTION_REPLY.size + length]))
        data = data[OPTION_REPLY.size + length :]
    return found


def ask(shake: Handshake, number: int, data: bytes = b"") -> list[tuple[int, bytes]]:
    found = answers(shake.receive(option(number, data)))
    assert all(echoed == number for echoed, _, _ in found)
    return [(kind, body) for _, kind, body in found]


def kinds(shake: Handshake, number: int, data: bytes = b"") -> list[int]:
    return [kind for kind, _ in ask(shake, number, data)]


def test_greeting() -> None:
    assert Handshake.greeting() == b"NBDMAGICIHAVEOPT\0\3"


def test_unknown_client_flags_end_it() -> None:
    shake = Handshake(lambda _: None, list)
    assert shake.receive(b"\0\0\0\7") == b""
    assert shake.state == "closed"
    assert "0x7" in shake.reason


def test_go() -> None:
    shake = handshake()
    assert ask(shake, Option.GO, go_data("disk", [3, 1, 2, 99])) == [
        (Rep.INFO, b"\0\0" + (1 << 30).to_bytes(8, "big") + b"\0\5"),
        (Rep.INFO, b"\0\1disk"),
        (Rep.INFO, b"\0\2the first"),
        (Rep.INFO, b"\0\3\0\0\2\0\0\0\x10\0\2\0\0\0"),
        (Rep.ACK, b""),
    ]
    assert shake.state == "transmission"
    assert shake.export is EXPORTS["disk"]
    assert not shake.structured and not shake.allocation


def test_what_follows_go_is_kept() -> None:
    shake = handshake()
    shake.receive(option(Option.GO, go_data("")) + b"requests")
    assert shake.export is EXPORTS["disk"]
    assert shake.rest == b"requests"


def test_info_does_not_begin_anything() -> None:
    shake = handshake()
    assert kinds(shake, Option.INFO, go_data("other")) == [Rep.INFO, Rep.ACK]
    assert shake.state == "options"


def test_after_an_unknown_name_one_may_try_again() -> None:
    shake = handshake()
    assert kinds(shake, Option.GO, go_data("nothing")) == [Rep.ERR_UNKNOWN]
    assert kinds(shake, Option.INFO, go_data("nothing")) == [Rep.ERR_UNKNOWN]
    assert kinds(shake, Option.GO, go_data("other")) == [Rep.INFO, Rep.ACK]


def test_export_name() -> None:
    for flags, zeroes in ((NO_ZEROES, 0), (b"\0\0\0\1", 124)):
        shake = handshake(flags=flags)
        answer = shake.receive(option(Option.EXPORT_NAME, b"other"))
        assert answer == (1 << 20).to_bytes(8, "big") + b"\0\7" + bytes(zeroes)
        assert shake.state == "transmission"
    shake = handshake()
    assert shake.receive(option(Option.EXPORT_NAME, b"nothing")) == b""
    assert shake.state == "closed"


def test_abort() -> None:
    shake = handshake()
    assert kinds(shake, Option.ABORT) == [Rep.ACK]
    assert shake.state == "closed"


def test_list() -> None:
    assert ask(handshake(), Option.LIST) == [
        (Rep.SERVER, text("disk") + b"the first"), (Rep.SERVER, text("other")), (Rep.ACK, b""),
    ]  # fmt: skip


def test_options_without_data_refuse_some() -> None:
    for number in (Option.LIST, Option.STRUCTURED_REPLY, Option.STARTTLS):
        shake = handshake("allow")
        assert kinds(shake, number, b"x") == [Rep.ERR_INVALID]
        assert shake.state == "options"


def test_unknown_options_are_unsupported() -> None:
    shake = handshake()
    for number in (4, 11, 77, (1 << 32) - 1):
        assert kinds(shake, number, b"whatever") == [Rep.ERR_UNSUP]


def test_structured_replies_bring_df() -> None:
    shake = handshake()
    assert kinds(shake, Option.STRUCTURED_REPLY) == [Rep.ACK]
    (_, export), *_ = ask(shake, Option.GO, go_data("disk"))
    assert int.from_bytes(export[10:], "big") == FLAGS | Tx.SEND_DF
    assert shake.structured


def test_meta_contexts() -> None:
    shake = handshake()
    assert kinds(shake, Option.LIST_META_CONTEXT, meta("disk", [])) == [Rep.ERR_INVALID]
    shake.receive(option(Option.STRUCTURED_REPLY))
    found = [Rep.META_CONTEXT, Rep.ACK]
    for queries in ([], ["base:"], ["x:y", "base:allocation"]):
        assert kinds(shake, Option.LIST_META_CONTEXT, meta("disk", queries)) == found
    assert kinds(shake, Option.LIST_META_CONTEXT, meta("disk", ["qemu:"])) == [Rep.ACK]
    assert kinds(shake, Option.LIST_META_CONTEXT, meta("nothing", [])) == [Rep.ERR_UNKNOWN]
    assert not shake.allocation
    assert ask(shake, Option.SET_META_CONTEXT, meta("disk", ["base:allocation"])) == [
        (Rep.META_CONTEXT, b"\0\0\0\1base:allocation"), (Rep.ACK, b""),
    ]  # fmt: skip
    assert kinds(shake, Option.SET_META_CONTEXT, meta("disk", [])) == [Rep.ACK]
    assert not shake.allocation
    assert kinds(shake, Option.SET_META_CONTEXT, meta("", ["base:allocation"])) == found
    assert kinds(shake, Option.GO, go_data("disk")) == [Rep.INFO, Rep.ACK]
    assert shake.allocation


def test_a_context_of_another_export_is_void() -> None:
    shake = handshake()
    shake.receive(option(Option.STRUCTURED_REPLY) + option(Option.SET_META_CONTEXT, meta("disk", ["base:allocation"])))
    assert shake.allocation
    shake.receive(option(Option.GO, go_data("other")))
    assert not shake.allocation


def test_malformed_data() -> None:
    shake = handshake()
    shake.receive(option(Option.STRUCTURED_REPLY))
    huge = b"\xff\xff\xff\xff"
    for number in (Option.GO, Option.INFO):
        for data in (
            b"", b"\0\0\0", text("disk"), text("disk") + b"\0", text("disk") + b"\0\2\0\0", huge + b"disk",
            go_data("disk") + b"x", text(b"\xff\xfe") + b"\0\0", text("x" * 4097) + b"\0\0",
        ):  # fmt: skip
            assert kinds(shake, number, data) == [Rep.ERR_INVALID]
    for number in (Option.LIST_META_CONTEXT, Option.SET_META_CONTEXT):
        for data in (
            b"", text("disk"), text("disk") + huge, text("disk") + b"\0\0\0\1", meta("disk", ["base:"]) + b"x",
            text("disk") + b"\0\0\0\1" + huge, text("disk") + b"\0\0\0\1" + text(b"\xff"),
        ):  # fmt: skip
            assert kinds(shake, number, data) == [Rep.ERR_INVALID]
    assert shake.state == "options"


def test_bad_magic_ends_it() -> None:
    shake = handshake()
    assert shake.receive(bytes(16)) == b""
    assert shake.state == "closed"


def test_long_options_are_dropped_without_being_kept() -> None:
    shake = handshake()
    header = OPTION.pack(OPTION_MAGIC, Option.GO, OPTION_MAX_BYTES + 1)
    assert [kind for _, kind, _ in answers(shake.receive(header))] == [Rep.ERR_TOO_BIG]
    for _ in range(OPTION_MAX_BYTES // 1024):
        shake.receive(bytes(1024))
        assert len(shake.rest) == 0
    assert kinds_after(shake, b"\0" + option(Option.LIST)) == [Rep.SERVER, Rep.SERVER, Rep.ACK]


def kinds_after(shake: Handshake, data: bytes) -> list[int]:
    return [kind for _, kind, _ in answers(shake.receive(data))]


def test_claimed_length_of_4_gib_ends_it() -> None:
    for length in (SKIP_MAX_BYTES + 1, (1 << 32) - 1):
        shake = handshake()
        assert shake.receive(OPTION.pack(OPTION_MAGIC, Option.GO, length)) == b""
        assert shake.state == "closed"


def test_number_of_options_is_bounded() -> None:
    shake = handshake()
    flood = option(77) * (OPTIONS_MAX + 1)
    assert len(answers(shake.receive(flood))) == OPTIONS_MAX
    assert shake.state == "closed"


# --- TLS ------------------------------------------------------------------------------------------------


def test_starttls_off() -> None:
    assert kinds(handshake(), Option.STARTTLS) == [Rep.ERR_UNSUP]


def test_starttls_voids_what_was_agreed_on() -> None:
    shake = handshake("allow")
    shake.receive(option(Option.STRUCTURED_REPLY) + option(Option.SET_META_CONTEXT, meta("disk", ["base:allocation"])))
    assert shake.structured and shake.allocation
    assert kinds(shake, Option.STARTTLS) == [Rep.ACK]
    assert shake.state == "tls"
    shake.secured()
    assert not shake.structured and not shake.allocation
    assert kinds(shake, Option.STARTTLS) == [Rep.ERR_INVALID]


def test_data_behind_starttls_end_it() -> None:
    shake = handshake("allow")
    assert shake.receive(option(Option.STARTTLS) + option(Option.LIST)) == b""
    assert shake.state == "closed"


def test_require() -> None:
    shake = handshake("require")
    for number in (Option.LIST, Option.INFO, Option.GO, Option.STRUCTURED_REPLY, 99):
        assert kinds(shake, number, go_data("disk")) == [Rep.ERR_TLS_REQD]
    assert kinds(shake, Option.STARTTLS) == [Rep.ACK]
    shake.secured()
    assert kinds(shake, Option.GO, go_data("disk")) == [Rep.INFO, Rep.ACK]
    shake = handshake("require")
    assert shake.receive(option(Option.EXPORT_NAME, b"disk")) == b""
    assert shake.state == "closed"
    assert kinds(handshake("require"), Option.ABORT) == [Rep.ACK]


# --- any bytes, any cuts ----------------------------------------------------------------------------------

OPTIONS = st.one_of(
    st.builds(option, st.integers(0, 12), st.binary(max_size=30)),
    st.builds(lambda name, infos: option(Option.INFO, go_data(name, infos)), st.sampled_from(["", "disk", "no"]),
              st.lists(st.integers(0, 5), max_size=4)),
    st.builds(lambda number, queries: option(number, meta("disk", queries)), st.sampled_from([9, 10]),
              st.lists(st.sampled_from(["base:", "base:allocation", "x:y"]), max_size=4)),
    st.sampled_from([option(Option.LIST), option(Option.STRUCTURED_REPLY), option(Option.GO, go_data("disk"))]),
    st.binary(max_size=20),
)  # fmt: skip


@given(st.lists(OPTIONS, max_size=12), st.lists(st.integers(1, 40), min_size=1, max_size=20))
def test_any_chunking_gives_the_same_answers(options: list[bytes], cuts: list[int]) -> None:
    data = NO_ZEROES + b"".join(options)
    whole, cut = (Handshake(lambda name: EXPORTS.get(name), lambda: list(EXPORTS.values())) for _ in range(2))
    expected = whole.receive(data)
    out, position, turn = b"", 0, 0
    while position < len(data):
        size = cuts[turn % len(cuts)]
        out += cut.receive(data[position : position + size])
        position, turn = position + size, turn + 1
    assert out == expected
    assert (cut.state, cut.export, cut.structured, cut.allocation, cut.rest) == (
        whole.state, whole.export, whole.structured, whole.allocation, whole.rest
    )  # fmt: skip


@given(st.binary(max_size=300), st.sampled_from(["off", "allow", "require"]))
def test_random_bytes_never_raise(noise: bytes, tls: TlsPolicy) -> None:
    handshake(tls).receive(noise)
    handshake(tls).receive(option(Option.GO, noise))
    handshake(tls).receive(option(Option.STRUCTURED_REPLY) + option(Option.SET_META_CONTEXT, noise))


def test_long_answers_come_piece_by_piece() -> None:
    """16 KiB of LIST with many exports would be 67 MB of answers: they are made as they are sent."""
    exports = [EXPORTS["disk"]._replace(name=f"e{number}", description="d" * 1024) for number in range(64)]
    shake = Handshake(lambda _: None, lambda: exports)
    one = 64 * (OPTION_REPLY.size + 4 + 1024) + sum(len(each.name) for each in exports) + OPTION_REPLY.size
    total, out = 0, shake.receive(NO_ZEROES + option(Option.LIST) * 100)
    while out:
        assert len(out) <= UNSENT_MAX_BYTES + one
        total += len(out)
        out = shake.receive(b"")
    assert total == 100 * one
    assert shake.state == "options"
